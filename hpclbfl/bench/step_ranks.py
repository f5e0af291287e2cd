"""A rank's part of `hpclbfl bench step`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from hpclbfl.bench import peers
from hpclbfl.bench.memory import launch_pss
from hpclbfl.bench.ranks import Task, run, times_s
from hpclbfl.bench.step import LOCAL_STEPS, Settings
from hpclbfl.bench.training import IMAGES, Training, make_job
from hpclbfl.comm import devices
from hpclbfl.comm.base import Communicator
from hpclbfl.comm.engines import communicator
from hpclbfl.config.sections import CommConfig
from hpclbfl.core.lean_torch import defer_compiler

_AVERAGE_EVERY = 4
"""FA: local steps between two timed averagings."""
_HOROVOD = ("horovod", "distributed-optimizer", "fa-horovod")
_WRAPS = {"compute": peers.alone, "ddp": peers.in_ddp, "distributed-optimizer": peers.in_horovod}


def measure(task: Task) -> dict[str, Any]:
    """Times of the steps, seconds, and of FA's averagings; the slowest rank's."""
    settings = Settings(**task.settings)
    if task.variant not in _WRAPS:
        # As the command line does.
        defer_compiler()
    engine = "horovod" if task.variant in _HOROVOD else "mpi"
    if task.variant == "distributed-optimizer":
        peers.start_horovod()
    comm: Communicator = communicator(CommConfig.model_validate({"engine": engine}))
    is_fa = task.variant.startswith("fa-")
    sync = {"kind": "fedavg", "local_steps": LOCAL_STEPS} if is_fa else {"kind": "bsp"}
    images = Path(task.scratch) / IMAGES
    job = make_job(images, settings.model, settings.batch, comm.size, sync=sync, comm={"engine": engine})
    library = comm.library
    if task.variant == "ddp":
        library = f"torch.distributed, {peers.join(comm, task.folder, devices.choose(comm))}"
    elif task.variant == "compute":
        library = "none"
    if task.variant in _WRAPS:
        training: Training | peers.PlainTraining = peers.PlainTraining(job, comm, _WRAPS[task.variant])
    else:
        training = Training(job, comm, task.log(comm))
    training.step()
    comm.barrier()
    found: dict[str, Any] = {"library": library, "start_s": time.time() - task.begun}
    if is_fa and isinstance(training, Training):
        found |= _federated(settings, training, comm)
    else:
        found["steps_s"] = times_s(comm, training.device, training.step, settings.warmup, settings.steps)
    comm.barrier()
    found["memory_mb"] = launch_pss() / 1e6
    peers.leave(comm)
    return found


def _federated(settings: Settings, training: Training, comm: Communicator) -> dict[str, list[float]]:
    """Local steps with an averaging after every few, each timed on its own."""
    times_s(comm, training.device, training.step, 0, settings.warmup)
    training.average()
    steps, averagings = [], []
    for begin in range(0, settings.steps, _AVERAGE_EVERY):
        steps += times_s(comm, training.device, training.step, 0, min(_AVERAGE_EVERY, settings.steps - begin))
        averagings += times_s(comm, training.device, training.average, 0, 1)
    return {"steps_s": steps, "averagings_s": averagings}


if __name__ == "__main__":
    run(measure)
