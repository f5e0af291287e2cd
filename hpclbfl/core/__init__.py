"""The foundation of all other packages: atomic files, and one boundary for each kind of foreign data.

Data that others may have written enter through one module per format: YAML (`yamlfile`), JSON (`jsonfile`), HDF5
(`h5file`), text for a terminal (`text`). These read typed and bounded values, which need no further checks.
"""
