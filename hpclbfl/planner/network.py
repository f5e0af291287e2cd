"""The links between ranks: a ring's cost fitted to timed reductions, and with it the whole of Eq. 2.

A ring allreduce of S bytes over n ranks takes 2 (n - 1) steps of S / n bytes each:

    t_sync = 2 (n - 1) (hop + S / (n * bandwidth)) = 2 (n - 1) / n * S / bandwidth + latency

so that a fit on the ranks that are there speaks of any number of ranks on links like theirs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hpclbfl.algorithms.replicas import Replicas
from hpclbfl.batching.cost_model import Line, fit_bent_line, fit_line, medians
from hpclbfl.batching.plan_file import NetworkPlan, Plan, RankPlan
from hpclbfl.comm.base import Communicator
from hpclbfl.config.components import PARTITIONS, POLICIES, component_config
from hpclbfl.config.job import JobConfig
from hpclbfl.planner.measure import IMAGES
from hpclbfl.training import build
from hpclbfl.training.loop import begin_record
from hpclbfl.training.setup import make_state

FITTED = (0.5, 1.0, 1.5)
HELD_OUT = (0.75, 1.25)
"""Sizes of the timed reductions, as parts of what the job reduces: near it, as what fits a cache is reduced faster."""


@dataclass(frozen=True)
class SyncRow:
    """One timed reduction, or one timed training step."""

    size_bytes: int
    repetition: int
    seconds: float
    """Of the rank that was done last."""


def message_bytes(job: JobConfig, parameter_bytes: int, buffer_bytes: int) -> int:
    """What a job reduces at once: gradients in the type that travels, or parameters and buffers."""
    if job.sync.trains_alone:
        return parameter_bytes + buffer_bytes
    return parameter_bytes // 2 if job.gradients.compression == "fp16" else parameter_bytes


def time_reductions(job: JobConfig, comm: Communicator, num_bytes: int, repetitions: int) -> list[SyncRow]:
    """Time reductions of several sizes as training makes them: gradients in buckets, parameters in one piece.

    Every rank calls this and gets the same rows.
    """
    device = build.device(comm)
    is_shared = not job.sync.trains_alone
    dtype = torch.float16 if is_shared and job.gradients.compression == "fp16" else build.dtype(job)
    whole = num_bytes // dtype.itemsize
    flat = torch.zeros(int(max(FITTED) * whole), dtype=dtype, device=device)
    emulation = build.emulation(job, comm, device)
    rows = []
    for part in (*FITTED, *HELD_OUT):
        count = max(1, int(part * whole))
        piece = int(job.comm.bucket_mb * 1e6) // flat.element_size() if is_shared else count
        message = flat[:count]
        for repetition in range(-2, repetitions):
            comm.barrier()
            _wait(device)
            begin = time.perf_counter()
            handles = [
                comm.reduce_(message[start : start + piece], f"plan.{start}") for start in range(0, count, piece)
            ]
            for handle in handles:
                handle.wait()
            if emulation is not None:
                emulation.transfer(message.nbytes)
            _wait(device)
            if repetition >= 0:
                rows.append(SyncRow(message.nbytes, repetition, time.perf_counter() - begin))
    slowest = [max(column) for column in zip(*comm.allgather([row.seconds for row in rows]), strict=True)]
    return [SyncRow(row.size_bytes, row.repetition, s) for row, s in zip(rows, slowest, strict=True)]


def fit_ring(rows: Sequence[SyncRow], num_ranks: int, engine: str, num_bytes: int) -> NetworkPlan:
    """The ring's parameters from timed reductions.

    Args:
        rows: of the sizes to fit.
        num_ranks, engine: that took part, and what carried the messages.
        num_bytes: what the job reduces at once.
    """
    found = medians((row.size_bytes, row.seconds) for row in rows)
    # From no less than the two largest sizes, between which the job's own lies.
    from_size = min(fit_bent_line(found).straight_from, sorted(found)[-2])
    line = fit_line({size: seconds for size, seconds in found.items() if size >= from_size})
    return ring_of(line, num_ranks, engine, num_bytes)


def ring_of(line: Line, num_ranks: int, engine: str, num_bytes: int) -> NetworkPlan:
    """From t = fixed + per_byte * bytes, as measured on so many ranks, to a ring's parameters."""
    hops = 2 * (num_ranks - 1)
    return NetworkPlan(
        num_ranks=num_ranks,
        engine=engine,
        hop_s=line.fixed / hops,
        # A reduction whose time no size changes has endless bandwidth as far as one can tell.
        bandwidth_bytes_per_s=hops / (num_ranks * max(line.per_sample, 1e-15)),
        num_bytes=num_bytes,
    )


def step_seconds(plan: Plan, num_ranks: int, local_steps: int, batch: int | None = None) -> float:
    """Eq. 2: mean time of a step, s, on so many ranks like those of the plan.

    The slowest kind of rank decides; t_sync is spread over the H = `local_steps` steps between two of them.

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
    """Time real training on all ranks, for comparison with Eq. 2: mean seconds of a step, slowest rank, each over H.

    Args:
        sizes: local batch sizes by rank; one client per rank.
        local_steps: H, over which the time of an averaging is spread.
    """
    most = max(IMAGES, sum(sizes))
    data = job.data.without_download().model_copy(update={"limit": min(most, job.data.limit or most)})
    batching = component_config(POLICIES, {"local_batch_size": list(sizes)}, "plan", "batching")
    changes = {
        "clients": comm.size,
        "data": data,
        "batching": batching,
        "partition": component_config(PARTITIONS, {"reshuffle": True}, "plan", "partition"),
    }
    state = make_state(job.model_copy(update=changes), comm)
    taken = []
    for repetition in range(-2, repetitions):
        comm.barrier()
        begin = time.perf_counter()
        record = begin_record(state)
        # The step's number stays, and with it what the algorithm does in it.
        state.algorithm.step(state, record, 0)
        state.counters.positions += state.counts_now
        _wait(state.device)
        stepped = time.perf_counter()
        if isinstance(state.model, Replicas):
            state.model.average_clients(state, record)
            _wait(state.device)
        averaged = time.perf_counter() - stepped
        if repetition >= 0:
            taken.append(stepped - begin + averaged / local_steps)
    state.model.close()
    return [max(column) for column in zip(*comm.allgather(taken), strict=True)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
