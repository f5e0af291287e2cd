"""Writing HDF5 files atomically, also on a full disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py

from hpclbfl.core.errors import EnvironmentFault
from hpclbfl.core.files import replacing_name
from hpclbfl.core.h5library import fault_of


@contextmanager
def new_h5file(path: Path) -> Iterator[h5py.File]:
    """Yield a new file that replaces the path if the block ends without an error; otherwise nothing changes.

    Flush datasets before releasing them: later failures are not raised.

    Args:
        path: the file; its folder exists.

    Raises:
        EnvironmentFault: it cannot be written; one line that names it.
    """
    with replacing_name(path) as temporary:
        file = None
        try:
            # The earliest format whose metadata have checksums, and whose attributes may be large.
            file = h5py.File(temporary, "w", locking=False, libver=("v108", "v110"))
            yield file
            file.flush()
            file.close()
        except BaseException as error:
            abandon(file)
            if isinstance(error, OSError | RuntimeError):
                reason = fault_of(error).lower()
                raise EnvironmentFault(f"{path}: cannot be written: {reason}; choose a writable place") from error
            raise


def abandon(file: Any) -> None:
    """Let HDF5 close a file that it cannot write.

    HDF5 keeps what it could not write and tries again when the file is closed, at the latest when the process ends; if
    that fails, it crashes. So the descriptor is redirected to a copy in memory, where writing succeeds. The file on
    disk stays as it is.
    """
    with suppress(OSError, RuntimeError, ValueError, AttributeError):
        descriptor = file.id.get_vfd_handle()
        copy = os.memfd_create("log") if hasattr(os, "memfd_create") else os.open(os.devnull, os.O_RDWR)
        place, size = 0, os.fstat(descriptor).st_size
        while place < size and (piece := os.pread(descriptor, 1 << 20, place)):
            place += os.pwrite(copy, piece, place)
        os.dup2(copy, descriptor)
        os.close(copy)
        file.close()
