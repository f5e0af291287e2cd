"""What a run tells at its beginning and at its end."""

from __future__ import annotations

import math

import torch

from hpclbfl.config.job import JobConfig
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.core.progress import Progress
from hpclbfl.core.signals import StopRequest
from hpclbfl.runs.checkpoint import Found
from hpclbfl.runs.folder import RunFolder
from hpclbfl.runs.log.writer import RunLog
from hpclbfl.training.loop import STOPPED, Outcome
from hpclbfl.training.state import TrainState

logger = Diagnostics(__name__)


def tell(state: TrainState, log: RunLog, progress: Progress, kind: str, text: str) -> None:
    """A line from rank 0, and an event."""
    if kind == "note":
        progress.say(f"note: {text}")
    else:
        progress.warn(text)
    if state.comm.rank == 0:
        log.append("events", step=state.counters.step, kind=kind, text=text)


def tell_details(state: TrainState, folder: RunFolder, found: Found | None) -> None:
    """Tell, for those who ask, what the run consists of."""
    logger.debug(f"run folder {folder.path}, experiment {state.job.digest(state.dataset.fingerprint)}")
    where = "held in memory" if state.train.in_memory else "decoded batch by batch"
    logger.debug(f"data {state.job.data.title}, fingerprint {state.dataset.fingerprint[:10]}; samples are {where}")
    num_parameters = sum(parameter.numel() for parameter in state.mean.parameters)
    logger.debug(f"model {state.job.model.name}: {num_parameters:,} parameters; {torch.get_num_threads()} threads")
    if found is not None:
        logger.debug(f"{folder.checkpoints}: read the checkpoint of step {found.step}")


def title(job: JobConfig) -> str:
    """The run in a few words: its name, how clients agree, how data are spread."""
    return f"{job.name} {job.sync.title}, {job.partition.title}"


def opening_line(state: TrainState) -> str:
    """Who trains, and on what."""
    comm = state.comm
    return (
        f"{_count(len(state.sizes), 'client')} on {_count(comm.size, 'rank')} ({comm.engine}, {state.device.type}), "
        f"global batch {state.global_batch_size}, {state.num_train} training samples"
    )


def closing_line(outcome: Outcome, request: StopRequest, folder: RunFolder) -> str:
    """What the run came to, or how it goes on."""
    if outcome.reason == STOPPED:
        return (
            f"{request.name or 'another rank'} asked to stop: saved after step {outcome.step}, epoch "
            f"{outcome.epoch:.2f}; the same command resumes it; {folder.path}"
        )
    score = f"loss {outcome.loss:.4g}" if math.isnan(outcome.top1) else f"top-1 {100 * outcome.top1:.1f} %"
    return (
        f"{score} after {_count(outcome.step, 'step')}, {outcome.epoch:.2f} epochs, "
        f"{outcome.elapsed_s:.1f} s of training ({outcome.reason}); {folder.path}"
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' if number != 1 else ''}"
