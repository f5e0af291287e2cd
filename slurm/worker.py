"""What runs on the node, once for each array task: it starts the run's ranks and has Slurm requeue the job if needed.

The batch script becomes this process (`exec`), which starts the ranks through srun or mpirun, passes requests to stop
on to them, and judges how they ended. A requeued job starts here again and resumes from the run's checkpoint.
"""

from __future__ import annotations

import os
import re
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hpclbfl.config.job import load_job
from hpclbfl.core.diagnostics import Diagnostics, on_terminal
from hpclbfl.core.errors import REQUEUE_CODE, DataError, HpclbflError
from hpclbfl.core.text import say_error
from hpclbfl.runs.folder import RunFolder
from hpclbfl.runs.lock import LockHeld, RunLock, acquire, slurm_job
from hpclbfl.runs.slurm_client import SlurmUnavailable, ask
from hpclbfl.slurm.outcome import Outcome, Tally, conclude
from hpclbfl.slurm.ranks import Launch, Stop, launch_command
from hpclbfl.slurm.resources import minutes
from hpclbfl.slurm.state import read_tail, size_of
from hpclbfl.training.stopping import is_finished

logger = Diagnostics(__name__)

TALLY = "tally.json"
REQUEUE_WAIT_S = 120.0
"""How long this process waits for Slurm to end it after a requeue."""


@dataclass(frozen=True)
class Task:
    """One run, as it is sent to the node."""

    launch: Launch
    retries: int
    """See the profile's key."""
    log_folder: Path
    """Where the output of the jobs is written."""


def run_task(task: Task) -> None:
    """Run one array task to its end; exits with the run's code unless that is 0."""
    try:
        with on_terminal():
            code = _run(task)
    except HpclbflError as error:
        say_error(error)
        code = error.exit_code
    if code:
        sys.exit(code)


def _run(task: Task) -> int:
    """Make one attempt, if the run needs it, and decide about the next one; returns the job's exit code."""
    run, job = RunFolder(task.launch.run_dir), slurm_job(os.environ) or "?"
    with Stop() as stop:
        if _is_done(run, task):
            logger.info(f"{run.path}: already done")
            return 0
        try:
            lock = acquire(run.path)
        except LockHeld as held:
            logger.info(f"left alone: {held}")
            return 0
        outcome, tally = _attempt(run, job, task, lock, stop)
        tell = logger.warning if outcome.word == "failed" else logger.info
        tell(f"{run.path}: {outcome} (exit code {outcome.code})")
        if outcome.word == "done":
            return 0
        if not tally.wants_more(outcome, task.retries):
            again = "not restarted (hpclbfl sweep restarts it)"
            logger.warning(f"{run.path}: {tally.idle} attempts in a row made no progress; {again}")
        elif is_requeued(job):
            _wait_for_signal(stop)
            return REQUEUE_CODE
        return REQUEUE_CODE if outcome.word == "stopped" else outcome.code or 1


def _is_done(run: RunFolder, task: Task) -> bool:
    """Whether the run is finished, and its `stop` has not grown since; training reports a damaged DONE.json."""
    done = None
    with suppress(DataError):
        done = run.done()
    return done is not None and is_finished(done, load_job(task.launch.job_file).stop)


def _attempt(run: RunFolder, job: str, task: Task, lock: RunLock, stop: Stop) -> tuple[Outcome, Tally]:
    """Run the ranks to their end and write the tally of attempts, then release the lock."""
    try:
        before = run.status()
        argv, env = launch_command(task.launch, {**os.environ, **lock.environment()})
        logger.info(f"{run.path}: {task.launch.ranks} rank(s) through {task.launch.launcher}")
        log = task.log_folder / f"{job}_0_log.out"
        begin = size_of(log)
        code = stop.run(argv, env)
        outcome = conclude(run, before, code, bool(stop.received), read_tail(log, begin))
        tally = Tally.read(run.path / TALLY, job).after(outcome)
        if outcome.word != "done":
            tally.write(run.path / TALLY)
        return outcome, tally
    finally:
        lock.release()


def _wait_for_signal(stop: Stop) -> None:
    """Wait for the SIGTERM with which Slurm ends a requeued job."""
    end, num_signals = time.monotonic() + REQUEUE_WAIT_S, len(stop.received)
    while len(stop.received) == num_signals and time.monotonic() < end:
        time.sleep(0.1)


def is_requeued(job: str) -> bool:
    """Have Slurm requeue this job, unless it is being cancelled; returns whether that was done."""
    try:
        shown = ask(["scontrol", "show", "job", "--oneliner", job])
        if not may_requeue(shown):
            logger.warning(f"job {job} is being ended from outside: not requeued by itself")
            return False
        ask(["scontrol", "requeue", job])
    except SlurmUnavailable as error:
        logger.warning(f"job {job} cannot be requeued: {error}; the next hpclbfl sweep goes on with it")
        return False
    logger.info(f"job {job} is requeued")
    return True


def may_requeue(shown: str) -> bool:
    """Whether a job that is ending should be requeued: not if somebody cancelled it.

    Args:
        shown: what `scontrol show job --oneliner` prints.
    """
    fields = dict(re.findall(r"(\w+)=(\S*)", shown))
    if fields.get("JobState") in ("RUNNING", "SUSPENDED", "STOPPED", "SIGNALING"):
        return True
    if fields.get("PreemptTime", "None") not in ("None", "(null)", "Unknown"):
        return True
    limit, ran = fields.get("TimeLimit", "UNLIMITED"), fields.get("RunTime", "")
    try:
        return minutes(ran) >= minutes(limit)
    except HpclbflError:
        return False
