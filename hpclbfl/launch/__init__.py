"""Starting ranks, explaining how they ended, and processes that end with their parent."""
