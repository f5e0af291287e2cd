"""The engine through which ranks communicate."""

from __future__ import annotations

import os
from collections.abc import Mapping

from hpclbfl.comm.base import Communicator
from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.config.sections import CommConfig
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.launched import launched_size


def communicator(config: CommConfig, environ: Mapping[str, str] = os.environ) -> Communicator:
    """The engine that the job asks for; `auto` is Horovod under MPI and local in a lone process.

    Raises:
        ConfigError: `local` under a launcher of several ranks, each of which would run the whole job.
    """
    size = launched_size(environ)
    if int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and not _under_mpi(environ):
        raise ConfigError("srun started several tasks that do not know of each other: use srun --mpi=pmix")
    if config.engine == "local" and size > 1:
        raise ConfigError(f"comm.engine: local is for one process, this job has {size} ranks; leave it 'auto'")
    if config.engine == "horovod" or (config.engine == "auto" and _under_mpi(environ)):
        from hpclbfl.comm.horovod import HorovodCommunicator

        return HorovodCommunicator()
    if config.engine == "mpi":
        from hpclbfl.comm.mpi import MpiCommunicator

        return MpiCommunicator(config.chunk_mb)
    return LocalCommunicator()


def _under_mpi(environ: Mapping[str, str]) -> bool:
    return any(name in environ for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"))
