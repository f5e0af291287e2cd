"""How ranks are started, what mpirun says of their end, and processes that end with their parent."""
