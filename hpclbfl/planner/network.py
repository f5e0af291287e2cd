"""The network between ranks: the cost of a ring fitted to timed reductions, and predictions by Eq. 2.

A ring allreduce of S bytes over n ranks takes 2 (n - 1) steps of S / n bytes each:

    t_sync = 2 (n - 1) (hop + S / (n * bandwidth)) = 2 (n - 1) / n * S / bandwidth + latency

so that a fit on the available ranks predicts any number of ranks on similar links.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hpclbfl.algorithms.emulate import make_emulation
from hpclbfl.algorithms.replicas import Replicas
from hpclbfl.batching.cost_model import fit_bent_line, fit_line, medians
from hpclbfl.batching.plan_file import NetworkPlan, Plan, RankPlan
from hpclbfl.comm import devices
from hpclbfl.comm.base import Communicator
from hpclbfl.comm.compression.volume import Volume, volume_of
from hpclbfl.comm.wire import ring
from hpclbfl.config.component_configs import component_config
from hpclbfl.config.components import PARTITIONS, POLICIES
from hpclbfl.config.job import JobConfig
from hpclbfl.core.precision import dtype_of
from hpclbfl.planner.measure import IMAGES, take_step
from hpclbfl.training.setup import make_state

FITTED = (0.5, 1.0, 1.5)
HELD_OUT = (0.75, 1.25)
"""Sizes of the timed reductions, relative to the job's own: close to it, as messages that fit a cache are faster."""
_WARMUP = 2


@dataclass(frozen=True)
class SyncRow:
    """One timed reduction, or one timed training step."""

    size_bytes: int
    repetition: int
    seconds: float
    """Of the slowest rank."""


def message_volume(
    job: JobConfig, shapes: Sequence[tuple[int, ...]], itemsize: int, buffer_bytes: int, num_ranks: int
) -> Volume:
    """What a job reduces at once: gradients, or parameters and buffers, as its compressor sends them.

    Args:
        shapes: of the parameters.
        itemsize: bytes of one of their numbers.
        buffer_bytes: of BatchNorm's running statistics, which are averaged as they are.
        num_ranks: each with one client.
    """
    whole = buffer_bytes if job.sync.trains_alone else 0
    found = volume_of(job.compression, shapes, itemsize, num_ranks)
    return Volume(found.ring_bytes + whole, found.gathered_bytes and found.gathered_bytes + whole)


def time_reductions(job: JobConfig, comm: Communicator, num_bytes: int, repetitions: int) -> list[SyncRow]:
    """Time reductions of several sizes as in training: gradients in buckets, parameters in one piece; a collective."""
    device = devices.choose(comm)
    emulation = make_emulation(job, comm, device)
    is_shared = not job.sync.trains_alone
    dtype = dtype_of(job.precision)
    whole = num_bytes // dtype.itemsize
    flat = torch.zeros(int(max(FITTED) * whole), dtype=dtype, device=device)
    keys, own = [], []
    for part in (*FITTED, *HELD_OUT):
        message = flat[: max(1, int(part * whole))]
        piece = int(job.comm.bucket_mb * 1e6) // flat.element_size() if is_shared else len(message)
        for repetition in range(-_WARMUP, repetitions):
            comm.barrier()
            synchronize(device)
            begin = time.perf_counter()
            handles = [comm.reduce_(bucket, f"plan.{k}") for k, bucket in enumerate(message.split(piece))]
            for handle in handles:
                handle.wait()
            if emulation is not None:
                emulation.transfer(ring(message.nbytes, comm.size))
            synchronize(device)
            if repetition >= 0:
                own.append(time.perf_counter() - begin)
                keys.append((message.nbytes, repetition))
    return [SyncRow(*key, seconds) for key, seconds in zip(keys, slowest(comm, own), strict=True)]


def fit_ring(rows: Sequence[SyncRow], num_ranks: int, engine: str, volume: Volume) -> NetworkPlan:
    """Fit the ring's parameters to timed reductions.

    Args:
        rows: of the sizes to fit.
        num_ranks, engine: of the measurement.
        volume: what the job reduces at once.
    """
    found = medians((row.size_bytes, row.seconds) for row in rows)
    # At least the two largest sizes, between which the job's own lies.
    from_size = min(fit_bent_line(found).straight_from, sorted(found)[-2])
    line = fit_line({size: seconds for size, seconds in found.items() if size >= from_size})
    hops = 2 * (num_ranks - 1)
    return NetworkPlan(
        num_ranks=num_ranks,
        engine=engine,
        hop_s=line.fixed / hops,
        # Where the size does not change the time, the bandwidth is practically unlimited.
        bandwidth_bytes_per_s=hops / (num_ranks * max(line.per_sample, 1e-15)),
        num_bytes=max(1, round(volume.ring_bytes)),
        gathered_bytes=volume.gathered_bytes,
    )


def step_seconds(plan: Plan, num_ranks: int, local_steps: int, batch: int | None = None) -> float:
    """Eq. 2: mean time of a step, s, on a number of ranks like those of the plan.

    The slowest rank decides; t_sync is spread over the H = `local_steps` steps between two averagings.

    Args:
        batch: samples of every client; None: each rank's share of the job's global batch.
    """
    slowest = max(rank.num_clients * rank.seconds(batch or usual_batch(rank)) for rank in plan.ranks)
    if num_ranks == 1 or plan.network is None:
        return slowest
    return slowest + plan.network.seconds(num_ranks) / local_steps


def usual_batch(rank: RankPlan) -> int:
    """The rank's share of the job's global batch, or its best batch where it has none."""
    return rank.local_batch_size or rank.best_batch or rank.max_batch


def time_steps(
    job: JobConfig, comm: Communicator, sizes: Sequence[int], local_steps: int, repetitions: int
) -> list[float]:
    """Time real training on all ranks, for comparison with Eq. 2: mean seconds of a step on the slowest rank.

    Args:
        sizes: local batch sizes by rank; one client per rank.
        local_steps: H; a step has 1/H of an averaging's time.
    """
    most = max(IMAGES, sum(sizes))
    changes = {
        "clients": comm.size,
        "data": job.data.without_download().model_copy(update={"limit": min(most, job.data.limit or most)}),
        "batching": component_config(POLICIES, {"local_batch_size": list(sizes)}, "plan", "batching"),
        "partition": component_config(PARTITIONS, {"reshuffle": True}, "plan", "partition"),
    }
    state = make_state(job.model_copy(update=changes), comm)
    own = []
    for repetition in range(-_WARMUP, repetitions):
        comm.barrier()
        # Post-local SGD would train alone from some step on.
        state.counters.step = 0
        begin = time.perf_counter()
        record = take_step(state)
        synchronize(state.device)
        stepped = time.perf_counter()
        if isinstance(state.model, Replicas):
            state.model.average_clients(state, record)
            synchronize(state.device)
        if repetition >= 0:
            own.append(stepped - begin + (time.perf_counter() - stepped) / local_steps)
    state.model.close()
    return slowest(comm, own)


def slowest(comm: Communicator, own: list[float]) -> list[float]:
    """The largest value over ranks, element by element; a collective."""
    return [max(column) for column in zip(*comm.allgather(own), strict=True)]


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
