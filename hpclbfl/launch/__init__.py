"""Starting ranks, what mpirun says about their end, and processes that end with their parent."""
