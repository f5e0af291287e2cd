"""The device and the cores that a rank computes on, and whether the ranks' devices are compatible."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import NamedTuple

import torch

from hpclbfl.comm.base import Communicator
from hpclbfl.core.errors import ConfigError, EnvironmentFault


class Seat(NamedTuple):
    """Where a rank computes."""

    host: str
    gpu: str
    """Its UUID, whatever number the rank knows it by; empty: the processor."""


def choose(comm: Communicator) -> torch.device:
    """A GPU of the rank's own, or the CPU; a collective. Ranks beyond the node's GPUs share them in turn.

    Raises:
        EnvironmentFault: some ranks have a GPU and others none, or two share one that the engine cannot share.
        ConfigError: the engine moves host memory alone.
    """
    seat = seat_of(comm)
    check(comm.allgather(seat), comm.shares_gpus if seat.gpu else True)
    if not seat.gpu:
        return torch.device("cpu")
    index = comm.local_rank % torch.cuda.device_count()
    if comm.engine == "mpi":
        raise ConfigError("comm.engine: mpi moves host memory; on GPUs leave it 'auto' (Horovod)")
    torch.cuda.set_device(index)
    if comm.engine == "horovod" and torch.cuda.current_stream() == torch.cuda.default_stream():
        # Horovod makes the default stream wait for a reduction as soon as that has begun: what is computed there would
        # wait in the middle of the backward pass.
        torch.cuda.set_stream(torch.cuda.Stream())
    return torch.device("cuda", index)


def seat_of(comm: Communicator) -> Seat:
    """Where this rank computes."""
    if not torch.cuda.is_available():
        return Seat(socket.gethostname(), "")
    index = comm.local_rank % torch.cuda.device_count()
    return Seat(socket.gethostname(), str(torch.cuda.get_device_properties(index).uuid))


def check(seats: Sequence[Seat], shares_gpus: bool) -> None:
    """Refuse seats that are not compatible; every rank passes the same ones and gets the same result.

    Args:
        seats: by rank.
        shares_gpus: whether two ranks may use one GPU.
    """
    for rank, seat in enumerate(seats):
        if bool(seat.gpu) != bool(seats[0].gpu):
            have, lack = (0, rank) if seats[0].gpu else (rank, 0)
            raise EnvironmentFault(
                f"rank {have} ({seats[have].host}) has a GPU and rank {lack} ({seats[lack].host}) none: start ranks "
                "where all have one, or hide the GPUs from all (CUDA_VISIBLE_DEVICES=)"
            )
        first = seats.index(seat)
        if seat.gpu and first != rank and not shares_gpus:
            raise EnvironmentFault(
                f"ranks {first} and {rank} share a GPU of {seat.host}, which NCCL cannot: start one rank for each GPU "
                "(its clients take turns), or hide the GPUs (CUDA_VISIBLE_DEVICES=)"
            )


def share_cores(comm: Communicator) -> None:
    """Share a node's cores among its ranks, unless the user has said otherwise."""
    if "OMP_NUM_THREADS" not in os.environ and comm.local_size > 1:
        usable = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, min(usable, (os.cpu_count() or 1) // comm.local_size)))


def use_deterministic_kernels(device: torch.device) -> None:
    """On a GPU, refuse kernels whose results differ from run to run."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
