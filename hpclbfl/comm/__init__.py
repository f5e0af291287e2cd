"""Communication: one small interface, a module for each engine, and gradient buckets on top."""
