"""A rank's part of `hpclbfl bench hetero`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from hpclbfl.batching import FloatArray, Observation
from hpclbfl.bench.hetero import POLICIES, SCENARIOS, SLEEP_S, Scenario, Settings
from hpclbfl.bench.ranks import Task, run
from hpclbfl.bench.training import IMAGES, make_job
from hpclbfl.comm.base import Communicator
from hpclbfl.config.components import POLICIES as POLICY_COMPONENTS
from hpclbfl.config.sections import CommConfig
from hpclbfl.runs.log.writer import RunLog
from hpclbfl.training import build
from hpclbfl.training.loop import begin_record
from hpclbfl.training.rebalance import observe, rebalance
from hpclbfl.training.setup import make_state


def measure(task: Task) -> dict[str, Any]:
    """Efficiency after settling, plans by step, seconds of the policy and of a step (medians)."""
    settings = Settings(**task.settings)
    name, _, variant = task.variant.partition(":")
    scenario = SCENARIOS[name]
    comm = build.communicator(CommConfig(engine="mpi"))
    take = _computing if scenario.computes else _sleeping
    found = take(task, settings, scenario, variant, comm)
    comm.close()
    return found


def _computing(task: Task, settings: Settings, scenario: Scenario, variant: str, comm: Communicator) -> dict[str, Any]:
    batching = {**POLICIES[variant], "global_batch_size": scenario.batch}
    job = make_job(
        Path(task.scratch) / IMAGES,
        settings.model,
        1,
        comm.size,
        batching=batching,
        emulate={"slowdown": scenario.slowdown},
        comm={"engine": "mpi"},
    )
    state = make_state(job, comm)
    log = RunLog(Path(task.folder) / f"rank{comm.rank:05d}.h5", {})
    steps, policy, plans = [], [], []
    rows: list[tuple[tuple[int, ...], FloatArray]] = []
    for step in range(scenario.steps):
        begin = time.perf_counter()
        record = begin_record(state)
        state.algorithm.step(state, record, 0)
        state.counters.positions += state.counts_now
        state.counters.step += 1
        told = observe(state, record, ends_round=True)
        rows += [(times.sizes, times.compute) for times in told]
        before, decided = state.plan, time.perf_counter()
        rebalance(state, log, told, record, ends_epoch=False)
        policy.append(time.perf_counter() - decided)
        if state.plan is not before:
            plans.append([step + 1, list(state.sizes)])
        steps.append(time.perf_counter() - begin)
    return _summary(scenario, rows, steps, policy, plans)


def _sleeping(task: Task, settings: Settings, scenario: Scenario, variant: str, comm: Communicator) -> dict[str, Any]:
    batching = {**POLICIES[variant], "global_batch_size": scenario.batch}
    job = make_job(Path("unused.h5"), settings.model, 1, comm.size, batching=batching)
    sizes = tuple(job.local_batch_sizes())
    maker = POLICY_COMPONENTS.make(job.batching, job, comm.size, sizes, [sum(sizes)] * len(sizes))
    plan, state = maker.init(sizes)
    fixed_s, per_sample_s = SLEEP_S
    slowdown = list(scenario.slowdown)
    steps, policy, plans = [], [], []
    rows: list[tuple[tuple[int, ...], FloatArray]] = []
    for step in range(scenario.steps):
        if scenario.change is not None and step == scenario.change[0]:
            slowdown[scenario.change[1]] = scenario.change[2]
        begin = time.perf_counter()
        time.sleep(slowdown[comm.rank] * (fixed_s + per_sample_s * plan.sizes[comm.rank]))
        computed = time.perf_counter() - begin
        seconds = np.array(comm.allgather(computed))
        rows.append((plan.sizes, seconds))
        decided = time.perf_counter()
        new, state = maker.update(Observation(plan.sizes, seconds), state)
        policy.append(time.perf_counter() - decided)
        if new is not None:
            plan = new
            plans.append([step + 1, list(plan.sizes)])
        steps.append(time.perf_counter() - begin)
    return _summary(scenario, rows, steps, policy, plans)


def _summary(
    scenario: Scenario,
    rows: list[tuple[tuple[int, ...], FloatArray]],
    steps: list[float],
    policy: list[float],
    plans: list[list[Any]],
) -> dict[str, Any]:
    """Per settled step: what was done in it over what the ranks, none waiting, would have done in that time."""
    settled = rows[scenario.settled :]
    efficiency = [
        sum(sizes) / step / float((np.array(sizes) / seconds).sum())
        for (sizes, seconds), step in zip(settled, steps[scenario.settled :], strict=False)
    ]
    return {
        "efficiency": float(np.median(efficiency)),
        "plans": plans,
        "policy_s": float(np.mean(policy)),
        "step_s": float(np.median(steps[scenario.settled :])),
        "steps_s": steps,
    }


if __name__ == "__main__":
    run(measure)
