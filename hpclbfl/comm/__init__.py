"""Communication: one small interface, an engine a module, and the gradient buckets on top."""
