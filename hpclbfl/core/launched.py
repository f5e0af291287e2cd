"""What a launcher tells each process that it starts, in the environment, before any MPI call."""

from __future__ import annotations

from collections.abc import Mapping


def launched_size(environ: Mapping[str, str]) -> int:
    """How many ranks the launcher started that started this process; 1 for a lone process.

    Knows Open MPI (mpirun, horovodrun, srun with PMIx), MPICH and Slurm's PMI.
    """
    if "OMPI_COMM_WORLD_SIZE" in environ:
        return int(environ["OMPI_COMM_WORLD_SIZE"])
    if "PMI_SIZE" in environ:
        return int(environ["PMI_SIZE"])
    if "PMIX_RANK" in environ and "SLURM_NTASKS" in environ:
        return int(environ["SLURM_NTASKS"])
    return 1


def launched_local_size(environ: Mapping[str, str]) -> int:
    """The number of ranks on this node, where the launcher tells it; else of all, which is never less."""
    return int(environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", launched_size(environ)))


def launched_rank(environ: Mapping[str, str]) -> int:
    """The rank of this process, as the launcher tells it, before any MPI call; 0 for a lone process."""
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"):
        if name in environ:
            return int(environ[name])
    return 0
