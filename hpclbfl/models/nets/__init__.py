"""Nets by name, one file for each family; torch is loaded only when one is made."""
