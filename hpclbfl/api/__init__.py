"""What a script or a notebook uses; `hpclbfl` itself has all of it by name."""
