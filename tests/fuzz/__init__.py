"""Fuzz targets, one for each boundary: whatever comes in, what comes out is a value or one line of ours.

Each runs for `HPCLBFL_FUZZ_S` seconds (4 by default); `HPCLBFL_FUZZ_S=3600 pytest -s tests/fuzz -k json` for an hour.
"""
