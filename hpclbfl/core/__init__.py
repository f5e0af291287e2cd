"""What everything else stands on: files written whole, and one boundary for each kind of foreign thing.

Whatever a stranger may have written passes a boundary once: YAML (`yamlfile`), JSON (`jsonfile`), HDF5 (`h5file`), text
for a terminal (`text`). Reading there is typed and bounded, and what comes out needs no further checks.
"""
