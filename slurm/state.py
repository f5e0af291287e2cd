"""State of a run (done, running, failed or waiting), from its folder, its lock and Slurm's queue."""

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
TAIL_BYTES = 1 << 16
"""Of a log."""
Word = Literal["done", "running", "failed", "waiting"]


@dataclass(frozen=True)
class RunState:
    """State of a run."""

    entry: Entry
    word: Word
    text: str
    """Which job, which error, what happens next; one line."""
    is_owned: bool = False
    """A live process or a queued job works on it: it must be left alone."""
    job: str | None = None
    """That Slurm job."""
    owner: Owner | None = None
    """The live process that holds its lock."""
    step: int | None = None
    """Finished optimizer steps."""
    epoch: float | None = None
    top1: float | None = None
    """Last test accuracy, 0 to 1."""
    done: Done | None = None
    """DONE.json of a finished run."""


def run_states(folder: SweepFolder, entries: Sequence[Entry]) -> list[RunState]:
    """Return the state of each run; Slurm is asked once for all of them."""
    jobs = folder.jobs()
    owners: dict[str, Owner | None] = dict.fromkeys(entry.id for entry in entries)
    for entry in entries:
        # A lock that cannot be read says nothing.
        with suppress(EnvironmentFault):
            owners[entry.id] = holder(folder.run(entry.id).path)
    asked = [job for entry in entries for job in jobs.get(entry.id, [])]
    asked += [owner.slurm for owner in owners.values() if owner is not None and owner.slurm is not None]
    queue = Queue(asked)
    return [_state(folder, entry, jobs.get(entry.id, []), owners[entry.id], queue) for entry in entries]


def _state(folder: SweepFolder, entry: Entry, jobs: list[str], owner: Owner | None, queue: Queue) -> RunState:
    """Of one run; if its files cannot be read, this run alone counts as failed."""
    try:
        return _judged(folder, entry, jobs, owner, queue)
    except EnvironmentFault as error:
        return RunState(entry, "failed", str(error))


def _judged(folder: SweepFolder, entry: Entry, jobs: list[str], owner: Owner | None, queue: Queue) -> RunState:
    run = folder.run(entry.id)
    done, problem = _done(run)
    if done is not None and entry.names(done.hash):
        state = RunState(entry, "done", "", step=done.step, epoch=done.epoch, top1=done.top1, done=done)
        # It may be queued again, to go on with a larger `stop`.
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
    """The state of a run that a live process or a queued job works on; None: there is none."""
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
    """DONE.json, and what is wrong with it."""
    try:
        return run.done(), ""
    except DataError as error:
        return None, str(error)


def _unowned(folder: SweepFolder, run: RunFolder, jobs: list[str], step: int | None) -> tuple[Word, str]:
    """Of a run that nothing works on."""
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
        error = last_line(read_tail(folder.job_log(jobs[-1])))
        return "failed", f"job {jobs[-1]} ended before the training began: {error}"
    return "waiting", NOT_STARTED


def progress(run: RunFolder) -> tuple[int | None, float | None, float | None]:
    """Return finished steps, epoch and last test accuracy (0 to 1) of a run that is not done; None: none yet."""
    step = epoch = top1 = None
    for attempt in reversed(run.attempts()):
        # HDF5 takes long to load, and most runs are either done or not started.
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


def size_of(path: Path) -> int:
    """Size of a log in bytes; 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def read_tail(path: Path, begin: int = 0) -> str:
    """The end of what was written to a log from byte `begin` on; empty if there is no log."""
    try:
        return read_end(path, TAIL_BYTES, begin).decode(errors="replace")
    except (FileNotFoundError, DataError):
        return ""


def last_line(text: str) -> str:
    """The last error message in the end of a log, or else its last line that is not blank or a rule."""
    lines = text.splitlines()
    errors = [line for line in lines if "hpclbfl: error:" in line]
    found = errors or [line for line in lines if line.strip(" -\t*")]
    return found[-1].strip() if found else "it printed nothing"
