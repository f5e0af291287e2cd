"""A probe that `hpclbfl doctor` starts: Horovod and mpi4py together, and a sum over the ranks.

It runs in its own processes, so that a crash of the libraries does not affect the doctor.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from hpclbfl.comm import mpi_runtime

MARK = "PROBE"


def loaded_mpi_libraries(maps: str) -> list[str]:
    """Return the MPI libraries among the files that a process has mapped (/proc/self/maps)."""
    return sorted(set(re.findall(r"/\S*/libmpi(?:ch|_\w+)?\.so\S*", maps)))


def main() -> None:
    """Print the results as one marked line of JSON, from rank 0."""
    mpi_runtime.prepare()
    import horovod
    import horovod.torch as hvd
    import torch

    hvd.init()
    total = float(hvd.allreduce(torch.ones(1), op=hvd.Sum))

    import mpi4py

    mpi4py.rc.initialize = False
    mpi4py.rc.finalize = False
    from mpi4py import MPI

    maps = Path("/proc/self/maps")
    if hvd.rank() == 0:
        found = {
            "horovod": horovod.__version__,
            "mpi": bool(hvd.mpi_built()),
            "nccl": bool(hvd.nccl_built()),
            "total": total,
            "mpi4py": mpi4py.__version__,
            # MPI is initialised for mpi4py only if both share one library.
            "shared": bool(MPI.Is_initialized()) and MPI.COMM_WORLD.Get_size() == hvd.size(),
            "libraries": loaded_mpi_libraries(maps.read_text()) if maps.exists() else [],
        }
        print(MARK + json.dumps(found), flush=True)
    # Horovod finalises MPI on all ranks when the first one leaves: all must be done.
    hvd.barrier()


if __name__ == "__main__":
    main()
