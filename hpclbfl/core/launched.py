"""Rank and size of a launch from the environment, before any MPI call."""

from __future__ import annotations

from collections.abc import Mapping


def launched_size(environ: Mapping[str, str]) -> int:
    """Number of ranks of this process's launch; 1 for a single process.

    Supports Open MPI (mpirun, horovodrun, srun with PMIx), MPICH and Slurm's PMI.
    """
    if "OMPI_COMM_WORLD_SIZE" in environ:
        return int(environ["OMPI_COMM_WORLD_SIZE"])
    if "PMI_SIZE" in environ:
        return int(environ["PMI_SIZE"])
    if "PMIX_RANK" in environ and "SLURM_NTASKS" in environ:
        return int(environ["SLURM_NTASKS"])
    return 1


def launched_local_size(environ: Mapping[str, str]) -> int:
    """Number of ranks on this node; if the launcher does not tell, an upper bound: the number of all ranks."""
    return int(environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", launched_size(environ)))


def launched_rank(environ: Mapping[str, str]) -> int:
    """Rank of this process according to the launcher; 0 for a single process."""
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"):
        if name in environ:
            return int(environ[name])
    return 0
