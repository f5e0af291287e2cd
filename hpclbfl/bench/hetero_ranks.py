"""A rank's part of `hpclbfl bench hetero`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hpclbfl.batching import FloatArray, Observation
from hpclbfl.bench.hetero import POLICIES, SCENARIOS, SLEEP_S, Scenario, Settings
from hpclbfl.bench.ranks import Task, run
from hpclbfl.bench.training import IMAGES, make_job
from hpclbfl.comm.base import Communicator
from hpclbfl.comm.engines import communicator
from hpclbfl.config.components import POLICIES as POLICY_COMPONENTS
from hpclbfl.config.job import JobConfig
from hpclbfl.config.sections import CommConfig
from hpclbfl.planner.measure import take_step
from hpclbfl.runs.log.writer import RunLog
from hpclbfl.training.rebalance import observe, rebalance
from hpclbfl.training.setup import make_state

Sizes = tuple[int, ...]
Taken = tuple[list[tuple[Sizes, FloatArray]], Sizes | None, float]
"""A step: batch sizes and the ranks' seconds that have arrived, the new batch sizes, and the policy's seconds."""


def measure(task: Task) -> dict[str, Any]:
    """Efficiency after convergence, plans by step, seconds of the policy (mean) and of a step (median)."""
    settings = Settings(**task.settings)
    name, _, variant = task.variant.partition(":")
    scenario = SCENARIOS[name]
    comm = communicator(CommConfig(engine="mpi"))
    sections: dict[str, Any] = {"batching": {**POLICIES[variant], "global_batch_size": scenario.batch}}
    if scenario.computes:
        sections |= {"emulate": {"slowdown": scenario.slowdown}, "comm": {"engine": "mpi"}}
    job = make_job(Path(task.scratch) / IMAGES, settings.model, 1, comm.size, **sections)
    taken = _training(job, comm, task.log(comm)) if scenario.computes else _sleeping(job, comm, scenario)
    rows: list[tuple[Sizes, FloatArray]] = []
    steps, policy, plans = [], [], []
    for step in range(scenario.steps):
        begin = time.perf_counter()
        observed, plan, policy_s = next(taken)
        rows += observed
        policy.append(policy_s)
        if plan is not None:
            plans.append([step + 1, list(plan)])
        steps.append(time.perf_counter() - begin)
    comm.close()
    # The work of a step, relative to what the ranks would have done in its time without waiting.
    efficiency = [
        sum(sizes) / step / float((np.array(sizes) / seconds).sum())
        for (sizes, seconds), step in zip(rows[scenario.first :], steps[scenario.first :], strict=False)
    ]
    return {
        "efficiency": float(np.median(efficiency)),
        "plans": plans,
        "policy_s": float(np.mean(policy)),
        "step_s": float(np.median(steps[scenario.first :])),
        "steps_s": steps,
    }


def _training(job: JobConfig, comm: Communicator, path: Path) -> Iterator[Taken]:
    """Steps of training, forever."""
    state = make_state(job, comm)
    log = RunLog(path, {})
    while True:
        record = take_step(state)
        gathered = observe(state, record, ends_round=True)
        before, begin = state.plan, time.perf_counter()
        rebalance(state, log, gathered, record, ends_epoch=False)
        policy_s = time.perf_counter() - begin
        observed = [(times.sizes, times.compute) for times in gathered]
        yield observed, None if state.plan is before else tuple(state.sizes), policy_s


def _sleeping(job: JobConfig, comm: Communicator, scenario: Scenario) -> Iterator[Taken]:
    """Steps that sleep, forever."""
    sizes = tuple(job.local_batch_sizes())
    policy = POLICY_COMPONENTS.make(job.batching, job, comm.size, sizes, [sum(sizes)] * len(sizes))
    plan, state = policy.init(sizes)
    fixed_s, per_sample_s = SLEEP_S
    slowdown, step = list(scenario.slowdown), 0
    while True:
        if scenario.change is not None and step == scenario.change[0]:
            slowdown[scenario.change[1]] = scenario.change[2]
        begin = time.perf_counter()
        time.sleep(slowdown[comm.rank] * (fixed_s + per_sample_s * plan.sizes[comm.rank]))
        seconds = np.array(comm.allgather(time.perf_counter() - begin))
        observed, begin = [(plan.sizes, seconds)], time.perf_counter()
        new, state = policy.update(Observation(plan.sizes, seconds), state)
        policy_s = time.perf_counter() - begin
        plan, step = new or plan, step + 1
        yield observed, None if new is None else new.sizes, policy_s


if __name__ == "__main__":
    run(measure)
