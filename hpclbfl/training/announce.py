"""Messages at the beginning and at the end of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from hpclbfl.config.job import JobConfig
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.core.progress import Progress
from hpclbfl.core.signals import StopRequest
from hpclbfl.runs.checkpoint import Found
from hpclbfl.runs.folder import RunFolder
from hpclbfl.runs.log.writer import RunLog
from hpclbfl.training.loop import STOPPED, Outcome
from hpclbfl.training.notices import chain_of, gradient_warnings
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


@dataclass(frozen=True)
class Start:
    """What was in the run folder."""

    found: Found | None
    """The checkpoint that the run goes on from."""
    passed_over: list[str]
    """A line for each file that could not be used."""
    aside: Path | None
    """Where an earlier run was moved to."""


def tell_start(state: TrainState, log: RunLog, progress: Progress, start: Start) -> None:
    """Say what begins, what its user should know of it, and what was in the folder."""
    progress.say(opening_line(state))
    if state.dataset.note:
        progress.say(state.dataset.note)
    for note in (*state.job.notes, *state.notes):
        tell(state, log, progress, "note", note)
    if start.aside is not None:
        progress.say(f"what was here is in {start.aside}")
    for line in start.passed_over:
        tell(state, log, progress, "checkpoint", f"passed over: {line}")
    if start.found is not None:
        progress.say(f"resumes after step {start.found.step}, epoch {state.epoch:.2f}")
    for line in state.policy.warnings:
        tell(state, log, progress, "plan", line)
    for warning in gradient_warnings(state.job):
        tell(state, log, progress, "warning", warning)
    chain = chain_of(state.job)
    if chain and state.comm.rank == 0:
        text = f"the gradient passes through {', '.join(chain)}, in this order"
        log.append("events", step=state.counters.step, kind="chain", text=text)


def log_details(state: TrainState, folder: RunFolder, found: Found | None) -> None:
    """Log the parts of the run, for `--verbose`."""
    logger.debug(f"run folder {folder.path}, experiment {state.identity.digest}")
    where = "held in memory" if state.train.in_memory else "decoded batch by batch"
    logger.debug(f"data {state.job.data.title}, fingerprint {state.dataset.fingerprint[:10]}; samples are {where}")
    num_parameters = sum(parameter.numel() for parameter in state.mean.parameters)
    logger.debug(f"model {state.job.model.name}: {num_parameters:,} parameters; {torch.get_num_threads()} threads")
    if found is not None:
        logger.debug(f"{folder.checkpoints}: read the checkpoint of step {found.step}")


def title(job: JobConfig) -> str:
    """The run in a few words: name, algorithm, partition."""
    return f"{job.name} {job.sync.title}, {job.partition.title}"


def opening_line(state: TrainState) -> str:
    """Clients, ranks, engine, device and batch size."""
    comm = state.comm
    return (
        f"{_count(len(state.sizes), 'client')} on {_count(comm.size, 'rank')} ({comm.engine}, {state.device.type}), "
        f"global batch {state.global_batch_size}, {state.num_train} training samples"
    )


def closing_line(outcome: Outcome, request: StopRequest, folder: RunFolder) -> str:
    """The result, or how to resume."""
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
