"""A rank's part of `hpclbfl bench step`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpclbfl.bench import peers
from hpclbfl.bench.ranks import Task, run, times_s
from hpclbfl.bench.step import LOCAL_STEPS, Settings
from hpclbfl.bench.training import IMAGES, Training, make_job
from hpclbfl.comm.base import Communicator
from hpclbfl.config.job import JobConfig
from hpclbfl.config.sections import CommConfig
from hpclbfl.training import build

_AVERAGE_EVERY = 4
"""FA: local steps between two averagings that are timed."""
_ENGINES = {"horovod": "horovod", "distributed-optimizer": "horovod", "fa-horovod": "horovod"}
_WRAPS = {"compute": peers.alone, "ddp": peers.in_ddp, "distributed-optimizer": peers.in_horovod}


def measure(task: Task) -> dict[str, Any]:
    """Times of the steps, seconds, and of FA's averagings; the slowest rank's."""
    settings = Settings(**task.settings)
    engine = _ENGINES.get(task.variant, "mpi")
    comm: Communicator = build.communicator(CommConfig.model_validate({"engine": engine}))
    is_fa = task.variant.startswith("fa-")
    sync = {"kind": "fedavg", "local_steps": LOCAL_STEPS} if is_fa else {"kind": "bsp"}
    images = Path(task.scratch) / IMAGES
    job = make_job(images, settings.model, settings.batch, comm.size, sync=sync, comm={"engine": engine})
    library = comm.library
    if task.variant == "ddp":
        library = f"torch.distributed, {peers.join(comm, task.folder, build.device(comm))}"
    elif task.variant == "compute":
        library = "none"
    found = _federated(settings, job, comm, task) if is_fa else _synchronous(settings, job, comm, task)
    peers.leave(comm)
    return {"library": library, **found}


def _synchronous(settings: Settings, job: JobConfig, comm: Communicator, task: Task) -> dict[str, Any]:
    training: Training | peers.PlainTraining
    if task.variant in _WRAPS:
        training = peers.PlainTraining(job, comm, _WRAPS[task.variant])
    else:
        training = Training(job, comm, _log(task, comm))
    return {"steps_s": times_s(comm, training.device, training.step, settings.warmup, settings.steps)}


def _federated(settings: Settings, job: JobConfig, comm: Communicator, task: Task) -> dict[str, Any]:
    """Local steps with an averaging after every few, each with a time of its own."""
    training = Training(job, comm, _log(task, comm))
    times_s(comm, training.device, training.step, 0, settings.warmup)
    training.average()
    steps, averagings = [], []
    for begin in range(0, settings.steps, _AVERAGE_EVERY):
        count = min(_AVERAGE_EVERY, settings.steps - begin)
        steps += times_s(comm, training.device, training.step, 0, count)
        averagings += times_s(comm, training.device, training.average, 0, 1)
    return {"steps_s": steps, "averagings_s": averagings}


def _log(task: Task, comm: Communicator) -> Path:
    return Path(task.folder) / f"rank{comm.rank:05d}.h5"


if __name__ == "__main__":
    run(measure)
