"""First scripts of child processes; they import nothing of the package before the path is set."""
