"""Between two steps: what the ranks' times say, and the batch sizes that follow."""

from __future__ import annotations

import numpy as np

from hpclbfl.batching import Observation
from hpclbfl.batching.local_steps import steps_by_speed
from hpclbfl.runs.log.writer import RunLog
from hpclbfl.training.state import Experiment
from hpclbfl.training.steplog import StepRecord
from hpclbfl.training.times import StepTimes

WINDOW = 5
"""Steps before an averaging whose times are told with it."""


def observe(exp: Experiment, record: StepRecord, is_shared: bool, averages: bool) -> list[StepTimes]:
    """Take a finished step; the times of steps that all ranks have learnt of."""
    if is_shared and exp.reducer is not None:
        told = exp.times.incoming(exp.reducer.times)
        exp.times.add(record)
        return [told] if told is not None else []
    if not averages:
        exp.times.add_local(record)
        return []
    return exp.times.averaged(record, max(WINDOW, exp.job.batching.num_told))


def adapt(exp: Experiment, log: RunLog, told: list[StepTimes], record: StepRecord, ends_epoch: bool) -> None:
    """Let the policy see what was told, and take its plan."""
    if exp.local_steps is not None and told:
        _share_local_steps(exp, log, told)
    unknown = np.full(exp.comm.size, np.nan)
    seen = [Observation(times.sizes, times.compute) for times in told] if exp.policy.needs_seconds else []
    if ends_epoch and "b_simple" in record.columns:
        seen.append(Observation(record.sizes, unknown, float(record.columns["b_simple"]), ends_epoch=True))
    for observation in seen:
        plan, exp.policy_state = exp.policy.update(observation, exp.policy_state)
        if plan is not None:
            exp.plan = plan
            log_plan(exp, log)


def log_plan(exp: Experiment, log: RunLog) -> None:
    """Write the plan in force, as of the coming step."""
    if exp.comm.rank == 0:
        for client, size in enumerate(exp.sizes):
            log.append("plans", step=exp.counters.step, client=client, local_batch_size=size, reason=exp.plan.reason)


def _share_local_steps(exp: Experiment, log: RunLog, told: list[StepTimes]) -> None:
    most = exp.job.sync.steps_of_fastest
    if most is None:
        return
    # A client that sat a step out was not measured in it.
    rows = [np.where(np.array(times.sizes) > 0, times.compute, np.nan) for times in told]
    if not np.isfinite(np.stack(rows)).any(axis=0).all():
        return
    steps = steps_by_speed(np.nanmedian(np.stack(rows), axis=0), most)
    if exp.local_steps is not None and (steps != exp.local_steps).any():
        exp.local_steps = steps
        if exp.comm.rank == 0:
            text = f"local steps by client: {', '.join(map(str, steps))}"
            log.append("events", step=exp.counters.step, kind="local_steps", text=text)
