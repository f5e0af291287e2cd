"""Makes the Open MPI wheel of a virtual environment usable, whether the environment is activated or not.

The wheel's libraries know no fixed place: they find their parts through OPAL_PREFIX, and the dynamic linker finds them
through LD_LIBRARY_PATH, which it reads only when a process starts. So this process loads the library itself, before
Horovod or mpi4py ask for it (both then bind to that one), and children get the two variables.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from pathlib import Path

_BTL = "OMPI_MCA_btl"
_loaded: list[ctypes.CDLL] = []


def bundled_libmpi(prefix: str = sys.prefix) -> Path | None:
    """Return the MPI library that lies in the environment itself, if there is one."""
    return next(iter(sorted(Path(prefix, "lib").glob("libmpi.so.*"))), None)


def bundled_environment(environ: Mapping[str, str], prefix: str = sys.prefix) -> dict[str, str]:
    """Return the variables that the environment's own MPI needs; empty where MPI is the machine's."""
    library = bundled_libmpi(prefix)
    if library is None:
        return {}
    folder = str(library.parent)
    others = [path for path in environ.get("LD_LIBRARY_PATH", "").split(":") if path and path != folder]
    found = {"OPAL_PREFIX": prefix, "LD_LIBRARY_PATH": ":".join([folder, *others])}
    # Its transport for one-sided communication, which nothing here uses, takes a second to be finalised.
    return found if _BTL in environ else {**found, _BTL: "^ofi"}


def prepare() -> None:
    """Let this process and its children use the environment's own MPI; call it before Horovod or mpi4py is imported."""
    library = bundled_libmpi()
    if library is None or _loaded:
        return
    os.environ.update(bundled_environment(os.environ))
    _loaded.append(ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL))
