"""The command `hpclbfl cancel`: ends the running and queued runs of a sweep; what they saved stays."""

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
    """Cancel the Slurm jobs of a sweep and send SIGTERM to its processes on this machine.

    Raises:
        ConfigError: not the folder of a sweep.
        RunFailed: some runs could not be reached; one line that names them.
    """
    folder = SweepFolder(directory)
    owned = [state for state in run_states(folder, folder.entries()) if state.is_owned]
    jobs = sorted({state.job for state in owned if state.job is not None})
    processes = {process for state in owned if (process := _process_here(state)) is not None}
    elsewhere = [state for state in owned if state.job is None and _process_here(state) is None]
    problems = [f"{state.entry.id} is run by {state.owner}" for state in elsewhere]
    for process in sorted(processes):
        try:
            os.kill(process.pid, signal.SIGTERM)
        except ProcessLookupError:
            pass  # it has just ended
        except OSError as error:
            problems.append(f"process {process.pid} cannot be signalled: {error.strerror}")
    try:
        _scancel(jobs)
    except SlurmUnavailable as error:
        problems.append(f"{', '.join(jobs)}: {error}")
    messages = [f"cancelled: job {', '.join(jobs)}"] if jobs else []
    if processes:
        messages.append(f"stopping on this machine: process {', '.join(str(p.pid) for p in sorted(processes))}")
    logger.info("; ".join(messages) or "nothing is running or queued")
    if problems:
        raise RunFailed(f"not cancelled: {'; '.join(problems)}")


def _scancel(jobs: list[str]) -> None:
    """Cancel jobs; those that are just ending or being requeued are tried again. Raises SlurmUnavailable."""
    for _ in range(_ATTEMPTS):
        refused: SlurmUnavailable | None = None
        for begin in range(0, len(jobs), _JOBS_PER_CALL):
            try:
                ask(["scancel", *jobs[begin : begin + _JOBS_PER_CALL]])
            except SlurmUnavailable as error:
                refused = error
        if refused is None:
            return
        jobs = [job.id for job in live_jobs(jobs).values() if job.state != "COMPLETING"]
        if not jobs:
            return
        time.sleep(1.0)
    if refused is not None:
        raise refused


def _process_here(state: RunState) -> Process | None:
    """The process on this machine that started the run, or one of its ranks; None for a Slurm job."""
    if state.owner is None or state.job is not None:
        return None
    return next((process for process in state.owner.processes if process.is_running), None)
