"""What became of ranks that could not say so themselves: killed, crashed, or ended before the run's end.

The launcher's messages name the rank and the signal. How far the rank had come is in the run folder: the committed rows
of its log (at most 2 s old) and its note to the watchdog (at most 10 s old). It may have come a little further. Loads
HDF5 only if there is a log to read, and never torch.
"""

from __future__ import annotations

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


def explain(run: RunFolder | None, code: int, said: str, signum: int | None = None, always: bool = False) -> str | None:
    """Return one line about ranks that ended without a word, None where a rank has said itself what is wrong.

    Args:
        run: the folder; None: the ranks ended before they took one up.
        code: exit code of the launcher; 128+n: signal n.
        said: what ranks and launcher wrote to stderr, or the end of it.
        signum: the signal upon which the launcher was told to end.
        always: also where nothing is known but the exit code.
    """

    def heard(rank: int | None) -> str:
        if run is not None:
            return last_heard(run, rank or 0)
        return ", before the training began" if rank is not None else ""

    return explain_end(code, said, signum, heard, always)


def last_heard(run: RunFolder, rank: int) -> str:
    """Return `, last heard of at step 37; the last checkpoint is of step 30`; empty where the folder holds neither.

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
    """Return how many steps a rank had finished when it was last heard of in an attempt; None: never."""
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
    goes_on: bool = True,
    debug: bool = False,
) -> int:
    """Run a job's command on `num_ranks` ranks; say what became of a rank that ended without a word.

    Args:
        job: the job, its clients resolved.
        run_dir: the run folder that the command names; None: it names none.
        num_ranks, command, hosts, debug: see `hpclbfl.launch.mpirun.run_mpirun`.
        goes_on: the same command, given again, goes on from a checkpoint.

    Returns:
        The exit code; see `run_mpirun`.
    """
    run = LaunchedRun(job, run_dir)

    def explain_run(code: int, said: str, signum: int | None) -> str | None:
        return run.settle(code, said, goes_on, signum)

    return run_mpirun(num_ranks, command, hosts=hosts, explain=explain_run, debug=debug)


class LaunchedRun:
    """The run of a job that is about to be launched: which folder it uses, and what happens there.

    Args:
        job: the job, its clients resolved.
        run_dir: the run folder; None: the ranks find its name, `runs/<slug>-<hash>`.
    """

    def __init__(self, job: JobConfig, run_dir: Path | None) -> None:
        self._job, self._run_dir = job, run_dir
        self._before = {folder.path: folder.status() for folder in self._folders()}

    def _folders(self) -> list[RunFolder]:
        if self._run_dir is not None:
            return [RunFolder(self._run_dir)]
        folders = [RunFolder(path) for path in sorted(Path("runs").glob(f"{self._job.slug()}-*"))]
        return [folder for folder in folders if self._is_of_job(folder)]

    def _is_of_job(self, folder: RunFolder) -> bool:
        """Whether a folder's config.yaml is this job, but for the end of its schedule, which only the ranks know."""
        with suppress(ConfigError):
            found = migrated(read_mapping(folder.config, "no job"))
            own = parse(self._job.to_yaml())
            if self._job.schedule.ends_with_run:
                found["schedule"] = own["schedule"]
            return bool(found == own)
        return False

    def find(self) -> RunFolder | None:
        """Return the folder in which the ranks have begun an attempt since; None: they have not come so far."""
        for folder in self._folders():
            status = folder.status()
            if status is not None and status != self._before.get(folder.path):
                return folder
        return None

    def settle(self, code: int, said: str, goes_on: bool, signum: int | None = None) -> str | None:
        """Explain the end of the ranks (see `explain`), and write the status that they could not.

        Args:
            code: exit code of the launcher.
            said: the end of what was written to stderr.
            goes_on: the same command goes on from a checkpoint.
            signum: the signal upon which the launcher was told to end.
        """
        run = self.find()
        line = explain(run, code, said, signum, always=True)
        if run is None or line is None:
            return line
        if _state(run) == "running" and not _is_taken(run):
            with suppress(HpclbflError):
                run.write_status("failed", error=line)
        does_go_on = goes_on and bool(checkpoint_steps(run.checkpoints))
        return f"{line}; the same command {'goes on from there' if does_go_on else 'starts anew'}"


def _is_taken(run: RunFolder) -> bool:
    """Whether a process of this machine has already taken the run up again."""
    owner = holder(run.path)
    return owner is not None and any(process.is_running for process in owner.processes)


def _state(run: RunFolder) -> str | None:
    status = run.status()
    return None if status is None else status.state
