"""What clients do in a step, and when they talk: an algorithm a file. See `hpclbfl.algorithms.base`."""
