"""The interface for scripts and notebooks; the package `hpclbfl` exports all of it."""
