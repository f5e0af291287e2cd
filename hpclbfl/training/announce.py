"""What a run tells at its beginning and at its end."""

from __future__ import annotations

import torch

from hpclbfl.config.job import JobConfig
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.core.progress import Progress
from hpclbfl.core.signals import StopRequest
from hpclbfl.runs.checkpoint import Found
from hpclbfl.runs.folder import RunFolder
from hpclbfl.runs.log.writer import RunLog
from hpclbfl.training.loop import STOPPED, Outcome
from hpclbfl.training.state import Experiment

logger = Diagnostics(__name__)


def tell(exp: Experiment, log: RunLog, progress: Progress, kind: str, text: str) -> None:
    """A line from rank 0, and an event."""
    if kind == "note":
        progress.say(f"note: {text}")
    else:
        progress.warn(text)
    if exp.comm.rank == 0:
        log.append("events", step=exp.counters.step, kind=kind, text=text)


def tell_details(exp: Experiment, folder: RunFolder, found: Found | None) -> None:
    """Tell, for those who ask, what the run consists of."""
    logger.debug(f"run folder {folder.path}, experiment {exp.job.digest(exp.dataset.fingerprint)}")
    where = "held in memory" if exp.train_images.in_memory else "decoded batch by batch"
    logger.debug(f"data {exp.job.data.title}, fingerprint {exp.dataset.fingerprint[:10]}; images are {where}")
    num_parameters = sum(parameter.numel() for parameter in exp.mean.parameters)
    logger.debug(f"model {exp.job.model.name}: {num_parameters:,} parameters; {torch.get_num_threads()} threads")
    if found is not None:
        logger.debug(f"{folder.checkpoints}: read the checkpoint of step {found.step}")


def title(job: JobConfig) -> str:
    """The run in a few words: its name, how clients agree, how data are spread."""
    return f"{job.name} {job.sync.title}, {job.partition.title}"


def opening_line(exp: Experiment) -> str:
    """Who trains, and on what."""
    comm = exp.comm
    return (
        f"{_count(len(exp.sizes), 'client')} on {_count(comm.size, 'rank')} ({comm.engine}, {exp.device.type}), "
        f"global batch {exp.global_batch_size}, {exp.num_train} training images"
    )


def closing_line(outcome: Outcome, request: StopRequest, folder: RunFolder) -> str:
    """What the run came to, or how it goes on."""
    if outcome.reason == STOPPED:
        return (
            f"{request.name or 'another rank'} asked to stop: saved after step {outcome.step}, epoch "
            f"{outcome.epoch:.2f}; the same command resumes it; {folder.path}"
        )
    return (
        f"top-1 {100 * outcome.top1:.1f} % after {_count(outcome.step, 'step')}, {outcome.epoch:.2f} epochs, "
        f"{outcome.elapsed_s:.1f} s of training ({outcome.reason}); {folder.path}"
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' if number != 1 else ''}"
