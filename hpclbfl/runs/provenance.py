"""Provenance: the software, machine and command of an attempt, recorded beside its logs.

Versions come from the packages' metadata, so that no heavy package is imported.
"""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import hpclbfl
from hpclbfl.core.cpu import cpu_model, physical_cores, usable_threads
from hpclbfl.runs.folder import utc_now

_PACKAGES = ("torch", "torchvision", "timm", "horovod", "mpi4py", "h5py", "numpy")
_VARIABLES = re.compile(
    r"(OMP_|MKL_|MALLOC_|HOROVOD_|OMPI_MCA_|NCCL_|PYTORCH_|CUBLAS_)\w+"
    r"|LD_PRELOAD|CUDA_VISIBLE_DEVICES|HDF5_USE_FILE_LOCKING|OMPI_COMM_WORLD_(SIZE|LOCAL_SIZE)"
    r"|SLURM_(JOB_ID|JOB_NAME|JOB_PARTITION|JOB_NODELIST|JOB_NUM_NODES|ARRAY_JOB_ID|ARRAY_TASK_ID|NTASKS"
    r"|CPUS_PER_TASK|RESTART_COUNT|CLUSTER_NAME)"
)
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|KEY")


def collect(engine: str, num_ranks: int, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """The record of this process, as JSON values; None for what is unknown.

    Args:
        engine: the communicator in use (comm.engine, resolved).
        num_ranks: size of the MPI job.
        extra: further entries that the caller knows, such as `mpi_library`.
    """
    return {
        "time": utc_now(),
        "engine": engine,
        "num_ranks": num_ranks,
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "hpclbfl": hpclbfl.__version__,
        "git": _git(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "cpu": {"model": cpu_model(), "cores": physical_cores(), "threads": os.cpu_count(), "usable": usable_threads()},
        "gpus": _gpus(),
        "tf32": _tf32(),
        "environment": environment(dict(os.environ)),
        "argv": list(sys.argv),
        **(extra or {}),
    }


def environment(variables: dict[str, str]) -> dict[str, str]:
    """The variables that affect a run's speed or placement; none that may be a secret."""
    return {k: v for k, v in sorted(variables.items()) if _VARIABLES.fullmatch(k) and not _SECRET.search(k)}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Commit of the checkout that this package is imported from, and whether the checkout differs from it."""
    root = Path(hpclbfl.__file__).resolve().parent.parent
    top = _command("git", "-C", str(root), "rev-parse", "--show-toplevel")
    # An installed copy may lie inside another project's checkout.
    if top is None or Path(top).resolve() != root:
        return None
    commit = _command("git", "-C", str(root), "rev-parse", "--verify", "HEAD")
    changes = _command("git", "-C", str(root), "status", "--porcelain")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _command(*words: str) -> str | None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _gpus() -> list[str]:
    # torch is not imported for this: that takes seconds, and a run without torch uses no GPU.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _tf32() -> dict[str, bool] | None:
    """Whether float32 products use TF32 (10-bit mantissas) on the GPU; None without a GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return {
        "convolutions": bool(torch.backends.cudnn.allow_tf32),
        "matrix_products": bool(torch.backends.cuda.matmul.allow_tf32),
    }
