"""What runs on the node, once for each array task: it watches over the run's ranks and has Slurm requeue the job.

The batch script becomes this process (`exec`), which starts the ranks through srun or mpirun, passes on the wish to
stop, and judges the end. A requeued job begins here again and goes on from the run's checkpoint.
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
from hpclbfl.core.files import read_end
from hpclbfl.core.text import say_error
from hpclbfl.launch.relay import SAID_BYTES
from hpclbfl.runs.folder import RunFolder
from hpclbfl.runs.lock import LockHeld, acquire, slurm_job
from hpclbfl.runs.slurm_client import SlurmUnavailable, ask
from hpclbfl.slurm.outcome import Tally, settle
from hpclbfl.slurm.ranks import Launch, Stop, launch_command
from hpclbfl.slurm.resources import minutes
from hpclbfl.slurm.state import last_line
from hpclbfl.training.stopping import is_finished

logger = Diagnostics(__name__)

TALLY = "tally.json"
REQUEUE_WAIT_S = 120.0
"""So long this process waits for the end that its requeue brings."""


@dataclass(frozen=True)
class Task:
    """One run, as it travels to the node."""

    launch: Launch
    retries: int
    """See the profile's key."""
    log_folder: Path
    """Where the output of the jobs lies."""


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
    run = RunFolder(task.launch.run_dir)
    job = slurm_job(os.environ) or "?"
    with Stop() as stop:
        done = None
        # Of one that is damaged, training tells.
        with suppress(DataError):
            done = run.done()
        if done is not None and is_finished(done, load_job(task.launch.job_file).stop):
            logger.info(f"{run.path}: already done")
            return 0
        try:
            lease = acquire(run.path)
        except LockHeld as held:
            logger.info(f"left alone: {held}")
            return 0
        try:
            before = run.status()
            argv, env = launch_command(task.launch, {**os.environ, **lease.environment()})
            logger.info(f"{run.path}: {task.launch.ranks} rank(s) through {task.launch.launcher}")
            log = task.log_folder / f"{job}_0_log.out"
            begin = log.stat().st_size if log.exists() else 0
            code = stop.run(argv, env)
            outcome = settle(run, before, code, bool(stop.received), last_line(log), _end_of(log, begin))
            tally = Tally.read(run.path / TALLY, job).after(outcome)
            if outcome.word != "done":
                tally.write(run.path / TALLY)
        finally:
            lease.release()
        tell = logger.warning if outcome.word == "failed" else logger.info
        tell(f"{run.path}: {outcome} (exit code {outcome.code})")
        if outcome.word == "done":
            return 0
        if tally.wants_more(outcome, task.retries) and is_requeued(job):
            # Slurm now ends this job, and says so with a TERM.
            end, num_signals = time.monotonic() + REQUEUE_WAIT_S, len(stop.received)
            while len(stop.received) == num_signals and time.monotonic() < end:
                time.sleep(0.1)
            return REQUEUE_CODE
        if not tally.wants_more(outcome, task.retries):
            again = "not restarted (hpclbfl sweep restarts it)"
            logger.warning(f"{run.path}: {tally.idle} attempts in a row made no progress; {again}")
        return REQUEUE_CODE if outcome.word == "stopped" else outcome.code or 1


def _end_of(log: Path, begin: int) -> str:
    """What was written to a log from this byte on, or the end of it: attempts before have written to it, too."""
    try:
        return read_end(log, SAID_BYTES, begin).decode(errors="replace")
    except (FileNotFoundError, DataError):
        return ""


def is_requeued(job: str) -> bool:
    """Have Slurm requeue this job, unless it is being cancelled; tell whether that was done."""
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
    """Tell from `scontrol show job -o` whether a job that ends should come again: unless somebody cancelled it."""
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
