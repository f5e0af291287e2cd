"""The analysis: from run folders to tables and figures. Loads neither torch nor Horovod."""

if __name__ != "hpclbfl.analysis":
    raise ImportError(f"this folder is the package hpclbfl.analysis; it cannot be imported as '{__name__}'")
