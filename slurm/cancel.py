"""The command `hpclbfl cancel`: ends what is running or queued of a sweep; what is saved stays."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.core.errors import RunFailed
from hpclbfl.core.process import Process
from hpclbfl.runs.slurm_client import SlurmUnavailable, ask, live_jobs
from hpclbfl.slurm.folder import SweepFolder
from hpclbfl.slurm.state import RunState, run_states

logger = Diagnostics(__name__, title="")

_JOBS_PER_CALL = 200
_ATTEMPTS = 3


def cancel(directory: Path) -> None:
    """Cancel the Slurm jobs of a sweep, and tell its processes on this machine to end.

    Raises:
        ConfigError: the folder is not that of a sweep.
        RunFailed: some could not be reached; one line that names them.
    """
    folder = SweepFolder(directory)
    owned = [state for state in run_states(folder, folder.entries()) if state.is_owned]
    jobs = sorted({state.job for state in owned if state.job is not None})
    processes = {process for state in owned if (process := _process_here(state)) is not None}
    beyond = [state for state in owned if state.job is None and _process_here(state) is None]
    problems = [f"{state.entry.id} is in the hands of {state.owner}" for state in beyond]
    for process in sorted(processes):
        try:
            os.kill(process.pid, signal.SIGTERM)
        except ProcessLookupError:
            pass  # it has just ended
        except OSError as error:
            problems.append(f"process {process.pid} cannot be told to end: {error.strerror}")
    try:
        _scancel(jobs)
    except SlurmUnavailable as silent:
        problems.append(f"{', '.join(jobs)}: {silent}")
    said = [f"cancelled: job {', '.join(jobs)}"] if jobs else []
    if processes:
        said.append(f"told to end on this machine: process {', '.join(str(p.pid) for p in sorted(processes))}")
    logger.info("; ".join(said) or "nothing is running or queued")
    if problems:
        raise RunFailed(f"not cancelled: {'; '.join(problems)}")


def _scancel(jobs: list[str]) -> None:
    """Cancel jobs; some may just be ending, or being requeued, and are tried again. Raises SlurmUnavailable."""
    refused: SlurmUnavailable | None = None
    for _ in range(_ATTEMPTS):
        refused = None
        for begin in range(0, len(jobs), _JOBS_PER_CALL):
            try:
                ask(["scancel", *jobs[begin : begin + _JOBS_PER_CALL]])
            except SlurmUnavailable as silent:
                refused = silent
        if refused is None:
            return
        jobs = [job.id for job in live_jobs(jobs).values() if job.state != "COMPLETING"]
        if not jobs:
            return
        time.sleep(1.0)
    if refused is not None:
        raise refused


def _process_here(state: RunState) -> Process | None:
    """The process to tell: whoever started the run, or what is left of it; of a Slurm job, Slurm tells it."""
    if state.owner is None or state.job is not None:
        return None
    return next((process for process in state.owner.processes if process.is_running), None)
