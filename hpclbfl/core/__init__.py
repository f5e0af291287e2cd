"""What everything else builds on: atomic files, and one boundary for each kind of foreign data.

Everything that somebody else may have written passes its boundary once: YAML (`yamlfile`), JSON (`jsonfile`), HDF5
(`h5file`), text for a terminal (`text`). Reading there is typed and bounded, and what comes out needs no further
checks.
"""
