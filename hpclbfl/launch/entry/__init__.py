"""Scripts that other processes begin with; each imports nothing of the package before it has made sure of its path."""
