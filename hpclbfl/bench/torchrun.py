"""Ranks that mpirun has started, for programs that expect torchrun."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

_NAMES = {"RANK": "RANK", "WORLD_SIZE": "SIZE", "LOCAL_RANK": "LOCAL_RANK", "LOCAL_WORLD_SIZE": "LOCAL_SIZE"}


def name_ranks(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set what torchrun sets, of the ranks of Open MPI on this machine; the launch has set `MASTER_PORT`."""
    for name, source in _NAMES.items():
        environ[name] = environ[f"OMPI_COMM_WORLD_{source}"]
    environ["MASTER_ADDR"], environ["TORCHELASTIC_RUN_ID"] = "127.0.0.1", "bench"


def master_port() -> dict[str, str]:
    """The variable with a port that is free now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return {"MASTER_PORT": str(taken.getsockname()[1])}
