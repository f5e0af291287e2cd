"""What has become of a run: done, running, failed or waiting, judged from its folder, its lease and Slurm's queue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hpclbfl.core.errors import DataError, EnvironmentFault
from hpclbfl.core.files import read_end
from hpclbfl.runs.folder import Done, RunFolder
from hpclbfl.runs.lock import LOST, Owner, holder, owner_liveness
from hpclbfl.runs.slurm_client import WAITING, Queue
from hpclbfl.slurm.folder import Entry, SweepFolder

NOT_STARTED = "not started"
Word = Literal["done", "running", "failed", "waiting"]


@dataclass(frozen=True)
class RunState:
    """What has become of a run."""

    entry: Entry
    word: Word
    text: str
    """Which job, which error, what next; one line."""
    is_owned: bool = False
    """Somebody is at it, or will be: it is to be left alone."""
    job: str | None = None
    """The Slurm job that is at it, or will be."""
    owner: Owner | None = None
    """The live process that holds its lease."""
    step: int | None = None
    """Finished optimizer steps."""
    epoch: float | None = None
    top1: float | None = None
    """Last test accuracy, 0 to 1."""
    done: Done | None = None
    """Of a finished run."""


def run_states(folder: SweepFolder, entries: Sequence[Entry]) -> list[RunState]:
    """Return the state of each run; Slurm is asked once for all of them."""
    jobs = folder.jobs()
    owners: dict[str, Owner | None] = dict.fromkeys(entry.id for entry in entries)
    for entry in entries:
        # A lock that cannot be looked at says nothing.
        with suppress(EnvironmentFault):
            owners[entry.id] = holder(folder.run(entry.id).path)
    asked = [job for entry in entries for job in jobs.get(entry.id, [])]
    asked += [owner.slurm for owner in owners.values() if owner is not None and owner.slurm is not None]
    queue = Queue(asked)
    return [_state(folder, entry, jobs.get(entry.id, []), owners[entry.id], queue) for entry in entries]


def _state(folder: SweepFolder, entry: Entry, jobs: list[str], owner: Owner | None, queue: Queue) -> RunState:
    """Of one run; what cannot be looked at is its own failure, not that of the others."""
    try:
        return _judged(folder, entry, jobs, owner, queue)
    except EnvironmentFault as error:
        return RunState(entry, "failed", str(error))


def _judged(folder: SweepFolder, entry: Entry, jobs: list[str], owner: Owner | None, queue: Queue) -> RunState:
    run = folder.run(entry.id)
    done, problem = _done(run)
    if done is not None and entry.names(done.hash):
        state = RunState(entry, "done", "", step=done.step, epoch=done.epoch, top1=done.top1, done=done)
        # It may be queued again, to go on where `stop` has grown.
        again = _owned(entry, jobs, owner, queue, state)
        return state if again is None else replace(again, word="done")
    step, epoch, top1 = progress(run)
    state = RunState(entry, "failed", problem, step=step, epoch=epoch, top1=top1)
    if (owned := _owned(entry, jobs, owner, queue, state)) is not None:
        return owned
    if problem:
        return state
    word, text = _unowned(folder, run, jobs, step)
    return replace(state, word=word, text=text)


def _owned(entry: Entry, jobs: list[str], owner: Owner | None, queue: Queue, state: RunState) -> RunState | None:
    """The state of a run that somebody is at, or will be; None: nobody."""
    live = owner_liveness(owner, queue) if owner is not None else None
    if owner is not None and live is not None and live.live:
        job = queue(jobs).get(owner.slurm or "") if queue.fault is None else None
        state = replace(state, is_owned=True, owner=owner)
        if job is not None and job.state in WAITING:
            return replace(state, word="waiting", text=f"requeued as {job.id}", job=job.id)
        return replace(state, word="running", text=str(owner), job=owner.slurm)
    state = replace(state, is_owned=True)
    if queue.fault is not None and jobs:
        text = f"its job {jobs[-1]} may be alive: {queue.fault}"
        return replace(state, word="waiting", text=text, job=jobs[-1])
    for job in reversed(list(queue(jobs).values())):
        if job.state in WAITING:
            reason = "" if job.reason in ("None", "") else f", {job.reason}"
            return replace(state, word="waiting", text=f"queued as {job.id}{reason}", job=job.id)
        return replace(state, word="running", text=f"Slurm job {job.id}, {job.state.lower()}", job=job.id)
    return None


def _done(run: RunFolder) -> tuple[Done | None, str]:
    """DONE.json, or what is wrong with it."""
    try:
        return run.done(), ""
    except DataError as error:
        return None, str(error)


def _unowned(folder: SweepFolder, run: RunFolder, jobs: list[str], step: int | None) -> tuple[Word, str]:
    """Of a run that nobody is at."""
    status = run.status()
    where = f" at step {step}" if step is not None else ""
    if status is not None and status.state == "failed":
        return "failed", status.error or "no reason given"
    if status is not None and status.state == "requeue":
        return "waiting", f"stopped{where}"
    if status is not None or step is not None:
        return "failed", LOST.replace(":", f"{where}:", 1)
    if jobs and not folder.job_log(jobs[-1]).exists():
        return "waiting", f"job {jobs[-1]} left the queue before it began"
    if jobs:
        return "failed", f"job {jobs[-1]} ended before the training began: {last_line(folder.job_log(jobs[-1]))}"
    return "waiting", NOT_STARTED


def progress(run: RunFolder) -> tuple[int | None, float | None, float | None]:
    """Return finished steps, epoch and last test accuracy (0 to 1) of a run that is not done; None: none yet."""
    # Imported here: HDF5 takes its time, and most runs are either done or not begun.
    step = epoch = top1 = None
    for attempt in reversed(run.attempts()):
        from hpclbfl.runs.log.reader import read_file

        with suppress(DataError):
            tables = read_file(attempt.rank_log(0)).tables
            steps, evals = tables["steps"], tables["evals"]
            if step is None and len(steps):
                step, epoch = int(steps["step"][-1]) + 1, float(steps["epoch"][-1])
            tests = evals["top1"][evals["split"] == b"test"]
            if top1 is None and len(tests) and math.isfinite(tests[-1]):
                top1 = float(tests[-1])
        if step is not None and top1 is not None:
            break
    return step, epoch, top1


def last_line(path: Path) -> str:
    """Return the last error in a log, or else the last line that says something."""
    try:
        lines = read_end(path, 8192).decode(errors="replace").splitlines()
    except (FileNotFoundError, DataError):
        return "it left no log"
    own = [line for line in lines if "hpclbfl: error:" in line]
    said = own or [line for line in lines if line.strip(" -\t*")]
    return said[-1].strip() if said else "no message"
