"""What `hpclbfl doctor` starts in processes of its own: Horovod and mpi4py together, and a sum over the ranks.

Whatever the libraries load, and however they crash, the calling process is not affected.
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
    """Print what was found as one marked line of JSON, from rank 0."""
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
            # Only a library that both share has been initialised by the other one.
            "shared": bool(MPI.Is_initialized()) and MPI.COMM_WORLD.Get_size() == hvd.size(),
            "libraries": loaded_mpi_libraries(maps.read_text()) if maps.exists() else [],
        }
        print(MARK + json.dumps(found), flush=True)
    # The first rank to leave makes Horovod finalise MPI on all of them: none leaves before all have asked.
    hvd.barrier()


if __name__ == "__main__":
    main()
