"""How ranks ended that could not report it themselves: killed, crashed, or gone before the run's end.

The launcher's messages name the rank and the signal. The run folder has the rank's progress: the committed rows of its
log (at most 2 s old) and its note to the watchdog (at most 10 s old), so the rank may have come slightly further. Loads
HDF5 only if there is a log to read, and never torch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hpclbfl.config.job import JobConfig
from hpclbfl.config.migrate import migrated
from hpclbfl.core.errors import ConfigError, DataError, HpclbflError
from hpclbfl.core.yamlfile import read_mapping
from hpclbfl.core.yamltext import parse
from hpclbfl.launch.messages import explain_end
from hpclbfl.launch.mpirun import run_mpirun
from hpclbfl.runs.folder import Attempt, RunFolder, checkpoint_steps
from hpclbfl.runs.lock import holder
from hpclbfl.training.watchdog import read_note

LINGER_S = 5.0
"""Longest time that a killed rank takes to disappear after its launcher, on a busy machine."""


def explain(
    run: RunFolder | None, code: int, stderr_tail: str, signum: int | None = None, always: bool = False
) -> str | None:
    """Return one line about ranks that ended without a message; see `explain_end`.

    Args:
        run: the folder, for the progress of the ranks; None: they ended before they opened one.
    """

    def progress_of(rank: int | None) -> str:
        if run is not None:
            return last_heard(run, rank or 0)
        return ", before the training began" if rank is not None else ""

    return explain_end(code, stderr_tail, signum, progress_of, always)


def last_heard(run: RunFolder, rank: int) -> str:
    """Return `, last heard of at step 37; the last checkpoint is of step 30`; empty where the folder has neither.

    Steps are finished optimizer steps of the run.
    """
    attempts = run.attempts()
    step = last_step(attempts[-1], rank) if attempts else None
    heard = f", last heard of at step {step}" if step is not None else ""
    saved = checkpoint_steps(run.checkpoints)
    if not saved:
        return f"{heard}; there is no checkpoint yet" if heard else ""
    return f"{heard}; the last checkpoint is of step {saved[0]}"


def last_step(attempt: Attempt, rank: int) -> int | None:
    """Return the last known number of steps that a rank has finished in an attempt; None: unknown."""
    steps = []
    if (note := read_note(attempt.path, rank)) is not None:
        steps.append(note.step)
    path = attempt.rank_log(rank)
    if path.exists():
        from hpclbfl.runs.log.reader import read_file

        with suppress(DataError):
            steps.append(read_file(path).span.end)
    return max(steps, default=None)


def launch_run(
    job: JobConfig,
    run_dir: Path | None,
    num_ranks: int,
    command: Sequence[str],
    hosts: str | None = None,
    resumes: bool = True,
    debug: bool = False,
) -> int:
    """Run a training command on ranks through mpirun; explain the end of a rank that ended without a message.

    Args:
        job: the job, its clients resolved.
        run_dir: the run folder that the command names; None: it names none.
        num_ranks, command, hosts, debug: see `hpclbfl.launch.mpirun.run_mpirun`.
        resumes: the same command, given again, resumes from a checkpoint.

    Returns:
        The exit code; see `run_mpirun`.
    """
    run = LaunchedRun(job, run_dir, resumes)
    return run_mpirun(num_ranks, command, hosts=hosts, explain=run.record_end, debug=debug)


class LaunchedRun:
    """The run of a job that is about to be launched: finds its folder, and records how it ended.

    Args:
        job: the job, its clients resolved.
        run_dir: the run folder; None: the ranks choose its name, `runs/<slug>-<hash>`.
        resumes: the same command resumes from a checkpoint.
    """

    def __init__(self, job: JobConfig, run_dir: Path | None, resumes: bool = True) -> None:
        self._job, self._run_dir, self._resumes = job, run_dir, resumes
        self._before = {folder.path: folder.status() for folder in self._folders()}

    def _folders(self) -> list[RunFolder]:
        if self._run_dir is not None:
            return [RunFolder(self._run_dir)]
        folders = [RunFolder(path) for path in sorted(Path("runs").glob(f"{self._job.slug()}-*"))]
        return [folder for folder in folders if self._is_of_job(folder)]

    def _is_of_job(self, folder: RunFolder) -> bool:
        """Whether config.yaml is this job, apart from the end of the schedule, which only the ranks know."""
        with suppress(ConfigError):
            found = migrated(read_mapping(folder.config, "no job"))
            own = parse(self._job.to_yaml())
            if self._job.schedule.ends_with_run:
                found["schedule"] = own["schedule"]
            return bool(found == own)
        return False

    def find(self) -> RunFolder | None:
        """Return the folder in which the ranks have begun an attempt; None: they have not come so far."""
        for folder in self._folders():
            status = folder.status()
            if status is not None and status != self._before.get(folder.path):
                return folder
        return None

    def record_end(self, code: int, stderr_tail: str, signum: int | None = None) -> str | None:
        """Explain the end of the ranks (see `explain`), and write the status that they could not write."""
        run = self.find()
        line = explain(run, code, stderr_tail, signum, always=True)
        if run is None or line is None:
            return line
        status = run.status()
        if status is not None and status.state == "running" and not _is_taken(run):
            with suppress(HpclbflError):
                run.write_status("failed", error=line)
        resumes = self._resumes and bool(checkpoint_steps(run.checkpoints))
        return f"{line}; the same command {'goes on from there' if resumes else 'starts anew'}"


def _is_taken(run: RunFolder) -> bool:
    """Whether a process of this machine has already resumed the run; a rank of the run that has ended may linger."""
    deadline = time.monotonic() + LINGER_S
    while True:
        owner = holder(run.path)
        if owner is None or not any(process.is_running for process in owner.processes):
            return False
        if time.monotonic() >= deadline:
            return True
        time.sleep(0.05)
