"""A rank's part of `hpclbfl bench gradients`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from hpclbfl.algorithms.lessons import asking
from hpclbfl.bench import peers
from hpclbfl.bench.gradients import SECTIONS, Settings
from hpclbfl.bench.ranks import Task, run
from hpclbfl.bench.training import IMAGES, Training, make_job
from hpclbfl.comm.engines import communicator
from hpclbfl.config.sections import CommConfig
from hpclbfl.planner.network import slowest


def measure(task: Task) -> dict[str, Any]:
    """Times of steps by variant, seconds, of the slowest rank; of a teacher's training steps apart; MB sent."""
    settings = Settings(**task.settings)
    comm = communicator(CommConfig(engine="mpi"))
    library = comm.library
    trainings: dict[str, Training] = {}
    for name in settings.variants:
        sections = {**SECTIONS[name], "comm": {"engine": "mpi"}}
        job = make_job(
            *(Path(task.scratch) / IMAGES, settings.model, settings.batch, comm.size),
            **{"gradients": {}, **sections},
        )
        trainings[name] = Training(job, comm, task.log(comm, name))
    times: dict[str, list[float]] = {name: [] for name in trainings}
    lessons: dict[str, list[float]] = {name: [] for name in trainings}
    for number in range(settings.warmup + settings.steps):
        for name, training in trainings.items():
            is_lesson = _learns(training)
            comm.barrier()
            begin = time.perf_counter()
            training.step()
            spent = time.perf_counter() - begin
            # The first step allocates what all of them need.
            if is_lesson and number:
                lessons[name].append(spent)
            elif number >= settings.warmup:
                times[name].append(spent)
    sent = {name: training.state.shared_model.reducer.sent_bytes / 1e6 for name, training in trainings.items()}
    own = {name: slowest(comm, found) for name, found in times.items()}
    usual = {name: float(np.median(found)) for name, found in own.items()}
    taught = {name: [t - usual[name] for t in slowest(comm, found)] for name, found in lessons.items() if found}
    peers.leave(comm)
    return {"library": library, "times": own, "lessons": taught, "sent_mb": sent}


def _learns(training: Training) -> bool:
    """Whether a teacher is trained in the coming step."""
    chain, step = training.state.shared_model.chain, training.state.counters.step
    return chain is not None and bool(asking([chain], step))


if __name__ == "__main__":
    run(measure)
