"""A plan from the probes of all ranks: largest and best batches, shares of the global batch, the time of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np

import hpclbfl
from hpclbfl.algorithms.rank import clients_of_rank
from hpclbfl.batching.plan_file import TOLERATED, NetworkPlan, Plan, RankPlan, job_fingerprint
from hpclbfl.batching.share import balance
from hpclbfl.comm.base import Communicator
from hpclbfl.comm.compression.volume import Volume
from hpclbfl.comm.devices import seat_of
from hpclbfl.config.job import JobConfig
from hpclbfl.planner.network import FITTED, fit_ring, message_volume, step_seconds, time_reductions, time_steps
from hpclbfl.planner.runner import Gathered, Probe
from hpclbfl.planner.store import ProbeRow, Role, errors_above, prediction_errors
from hpclbfl.planner.study import DeviceProfiler, Options, Place, Study
from hpclbfl.runs.folder import utc_now

REDUCTIONS = 7
STEPS = 8
"""Repetitions of reductions, and of training steps on all ranks."""


def make_plan(
    job: JobConfig, comm: Communicator, is_gpu: bool, probe: Probe, options: Options, say: Callable[[str], None]
) -> tuple[Plan, list[ProbeRow], Gathered]:
    """Probe every rank's device and the network between them; a collective with the same result on every rank.

    Args:
        job: resolved.
        is_gpu: whether ranks compute on GPUs.
        probe, say: see `DeviceProfiler`.

    Returns:
        The plan, all probes, and the answer of rank 0's probe `times`.
    """
    seat = seat_of(comm)
    sharing = comm.allgather(seat).count(seat) if is_gpu else 1
    place = Place(comm.rank, comm.size, comm.local_rank, comm.local_size, comm.engine, is_gpu, sharing)
    studies: list[Study] = comm.allgather(DeviceProfiler(job, place, probe, options, say).run())
    first = studies[0].gathered
    rows = [row for study in studies for row in study.rows]
    ranks = [study.plan for study in studies]
    usual = job.local_batch_sizes()
    total, has_one_each = sum(usual), len(usual) == comm.size
    sizes: Sequence[int] | None = [usual[clients_of_rank(len(usual), r, comm.size)[0]] for r in range(comm.size)]
    if has_one_each:
        sizes = shares(total, ranks, getattr(job.batching, "min_local_batch_size", None) or 1)
    if sizes is not None:
        ranks = [rank.model_copy(update={"local_batch_size": b}) for rank, b in zip(ranks, sizes, strict=True)]
    plan = Plan(
        ranks=tuple(ranks),
        job=job_fingerprint(job),
        num_train=first.num_train,
        global_batch_size=total,
        local_steps=job.sync.period(total, first.num_train),
        made={"time": utc_now(), "hpclbfl": hpclbfl.__version__, "engine": comm.engine, "data": first.fingerprint},
    )
    if comm.size > 1:
        say("timing reductions")
        volume = message_volume(job, first.shapes, first.itemsize, first.buffer_bytes, comm.size)
        network, sync_rows = _network(job, comm, volume)
        plan = plan.model_copy(update={"network": network})
        rows += sync_rows
        if sizes is not None and has_one_each:
            say("timing steps on all ranks")
            local_steps = plan.local_steps if job.sync.trains_alone else 1
            # Eq. 2 on the available ranks.
            local = max(rank.seconds(size) for rank, size in zip(ranks, sizes, strict=True))
            predicted = local + network.seconds(comm.size) / local_steps
            timed = enumerate(time_steps(job, comm, sizes, local_steps, STEPS))
            rows += [ProbeRow("t_step_s", max(sizes), k, s, predicted, "held_out", -1) for k, s in timed]
    errors = {e.quantity: asdict(e) for e in prediction_errors(rows)}
    return plan.model_copy(update={"fits": errors, "warnings": errors_above(TOLERATED, rows)}), rows, first


def shares(total: int, ranks: Sequence[RankPlan], low: int = 1) -> tuple[int, ...] | None:
    """Local batch sizes that sum to `total` and minimise the slowest rank's time; None if the bounds forbid it."""
    lows, highs = [low] * len(ranks), [rank.max_batch for rank in ranks]
    if not sum(lows) <= total <= sum(highs) or any(high < low for high in highs):
        return None
    fixed_s = np.array([rank.t_fixed_s for rank in ranks])
    per_sample_s = np.array([rank.t_per_sample_s for rank in ranks])
    return balance(total, fixed_s, per_sample_s, lows, highs)


def _network(job: JobConfig, comm: Communicator, volume: Volume) -> tuple[NetworkPlan, list[ProbeRow]]:
    timed = time_reductions(job, comm, round(volume.on(comm.size)), REDUCTIONS)
    held_out = list(dict.fromkeys(row.size_bytes for row in timed))[len(FITTED) :]
    network = fit_ring([row for row in timed if row.size_bytes not in held_out], comm.size, comm.engine, volume)
    rows = []
    for row in timed:
        role: Role = "held_out" if row.size_bytes in held_out else "fit"
        predicted = network.seconds(comm.size, row.size_bytes)
        rows.append(ProbeRow("t_sync_s", 0, row.repetition, row.seconds, predicted, role, -1, row.size_bytes))
    return network, rows


def predictions(plan: Plan) -> list[dict[str, float]]:
    """Eq. 2 for several numbers of ranks, each with its share of the job's global batch, at H = 1 and the job's H.

    Without a measured network, for one rank only.
    """
    counts = sorted({1, 2, 4, 8, 16, 32, 64, len(plan.ranks)}) if plan.network is not None else [1]
    return [
        {"num_ranks": n, "local_steps": h, "t_step_s": step_seconds(plan, n, h)}
        for n in counts
        for h in sorted({1, plan.local_steps})
    ]
