"""Data sets, one file each; a set is made from its config, which has the keys that it alone understands."""
