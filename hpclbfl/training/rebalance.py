"""Between two steps: what the ranks' times say, and the batch sizes that follow."""

from __future__ import annotations

import math

import numpy as np

from hpclbfl.algorithms.record import StepRecord
from hpclbfl.algorithms.shared_model import SharedModel
from hpclbfl.algorithms.times import StepTimes
from hpclbfl.batching import Observation
from hpclbfl.batching.local_steps import steps_by_speed
from hpclbfl.config.sections import DetectorConfig
from hpclbfl.runs.log.writer import RunLog
from hpclbfl.training.state import TrainState

WINDOW = 5
"""Steps before an averaging whose times are gathered with it."""


def observe(state: TrainState, record: StepRecord, ends_round: bool) -> list[StepTimes]:
    """Take a finished step; the times of steps that all ranks have learnt of."""
    if record.gathered_times is not None:
        gathered = state.times.incoming(record.gathered_times)
        state.times.add(record)
        return [gathered] if gathered is not None else []
    if not ends_round:
        state.times.add_local(record)
        return []
    return state.times.averaged(record, max(WINDOW, state.job.batching.num_timed_steps))


def rebalance(state: TrainState, log: RunLog, gathered: list[StepTimes], record: StepRecord, ends_epoch: bool) -> None:
    """Let the policy see what was gathered, and take its plan."""
    if state.local_steps is not None and gathered:
        _share_local_steps(state, log, gathered)
    unknown = np.full(state.comm.size, np.nan)
    seen = [Observation(times.sizes, times.compute) for times in gathered] if state.policy.needs_seconds else []
    watched = state.job.batching.watched_change
    if ends_epoch and ("b_simple" in record.columns or watched is not None):
        b_simple, change = float(record.columns.get("b_simple", math.nan)), _change(state, watched)
        seen.append(Observation(record.sizes, unknown, b_simple, ends_epoch=True, change=change))
    for observation in seen:
        plan, state.policy_state = state.policy.update(observation, state.policy_state)
        if plan is not None:
            state.plan = plan
            log_plan(state, log)


def log_plan(state: TrainState, log: RunLog) -> None:
    """Write the plan in force, as of the coming step."""
    if state.comm.rank == 0:
        for client, size in enumerate(state.sizes):
            log.append(
                "plans", step=state.counters.step, client=client, local_batch_size=size, reason=state.plan.reason
            )


def _change(state: TrainState, watched: str | DetectorConfig | None) -> float:
    """The change that the policy decides by, equal on all ranks; NaN: there is none."""
    if watched is None or not isinstance(state.model, SharedModel) or state.model.chain is None:
        return math.nan
    return float(state.model.chain.change_of(watched))


def _share_local_steps(state: TrainState, log: RunLog, gathered: list[StepTimes]) -> None:
    most = state.job.sync.steps_of_fastest
    if most is None:
        return
    # A client that sat a step out was not measured in it.
    rows = [np.where(np.array(times.sizes) > 0, times.compute, np.nan) for times in gathered]
    if not np.isfinite(np.stack(rows)).any(axis=0).all():
        return
    steps = steps_by_speed(np.nanmedian(np.stack(rows), axis=0), most)
    if state.local_steps is not None and (steps != state.local_steps).any():
        state.local_steps = steps
        if state.comm.rank == 0:
            text = f"local steps by client: {', '.join(map(str, steps))}"
            log.append("events", step=state.counters.step, kind="local_steps", text=text)
