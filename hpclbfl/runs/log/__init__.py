"""The log of a run: one HDF5 file per rank and attempt, safe against kills (`schema`, `writer`, `reader`)."""
