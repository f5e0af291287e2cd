"""Sweeps: many runs from one file, as SLURM job arrays or on this machine. Loads neither torch nor Horovod."""

if __name__ != "hpclbfl.slurm":
    raise ImportError(f"this folder is the package hpclbfl.slurm; it cannot be imported as '{__name__}'")
