"""What became of ranks that could not say it themselves: killed, crashed, or ended before the run's end.

The launcher's own words name the rank and the signal; how far the rank had come is in the run folder: the rows of its
log that were committed (at most 2 s old) and its note to the watchdog (at most 10 s old). Both are what was last heard
of the rank; it may have come a little further. Loads HDF5 when there is a log to read, torch never.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from hpclbfl.config import JobConfig
from hpclbfl.core.text import say
from hpclbfl.errors import REQUEUE_CODE, DataError, HpclbflError
from hpclbfl.launch import run_mpirun
from hpclbfl.lease import holder
from hpclbfl.runfolder import Attempt, RunFolder, checkpoint_steps
from hpclbfl.watchdog import read_note

OWN_ERROR = "hpclbfl: error:"
"""How a rank begins the line in which it says itself what is wrong."""

_MPIRUN_SIGNAL = re.compile(r"process rank (\d+) with PID \d+ on\s+node (\S+) exited on signal (\d+)")
_MPIRUN_IMPROPER = re.compile(r"process rank (\d+) with PID \d+ on\s+node (\S+) exiting improperly")
_MPIRUN_CODE = re.compile(r"Process name: \[\[\d+,\d+\],(\d+)\]\s+Exit code:\s+(\d+)")
_SRUN = re.compile(r"srun: error: (\S+): tasks? (\d+)[\d,-]*: (.+)")
_SRUN_CODE = re.compile(r"Exited with exit code (\d+)")
_START_TIMEOUT = re.compile(r"^Timeout \((\d+:\d+:\d+)\S*\)!$", re.MULTILINE)
_ABORT = "MPI_ABORT was invoked"
_SIGNALS = {signal.strsignal(number): number for number in signal.valid_signals()}
# By these a launcher or the user ends the ranks that are left.
_BY_WISH = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Death(NamedTuple):
    """The end of the rank that took the others with it."""

    rank: int
    node: str
    signal: int | None = None
    """None: it ended by itself."""
    code: int = 0
    """Exit code of one that ended by itself."""
    is_improper: bool = False
    """It ended in the middle of MPI's work."""
    is_out_of_memory: bool = False
    """Slurm saw that the node's or the job's memory was used up."""

    def __str__(self) -> str:
        at = f"rank {self.rank}{f' on {self.node}' if self.node else ''}"
        if self.signal is None:
            return f"{at} ended too early, with exit code {self.code}"
        if self.is_out_of_memory:
            return f"{at} was killed: out of memory"
        guess = " (out of memory?)" if self.signal == signal.SIGKILL else ""
        return f"{at} was {'killed' if guess else 'ended'} by {signal_name(self.signal)}{guess}"


def signal_name(number: int) -> str:
    """Return SIGKILL for 9; `signal 99` for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def find_death(said: str) -> Death | None:
    """Return what mpirun or srun says about the rank that ended first; None: nothing, or all ended by wish.

    Args:
        said: what ranks and launcher wrote to stderr, or the end of it.
    """
    if found := _MPIRUN_SIGNAL.search(said):
        number = int(found[3])
        return None if number in _BY_WISH else Death(int(found[1]), found[2], number)
    if found := _MPIRUN_IMPROPER.search(said):
        return Death(int(found[1]), found[2], is_improper=True)
    if found := _MPIRUN_CODE.search(said):
        return Death(int(found[1]), "", code=int(found[2]))
    for found in _SRUN.finditer(said):
        rank, node, words = int(found[2]), found[1], found[3].strip()
        if words.lower() == "out of memory":
            return Death(rank, node, signal.SIGKILL, is_out_of_memory=True)
        if code := _SRUN_CODE.match(words):
            return Death(rank, node, code=int(code[1]))
        ended_by = _SIGNALS.get(words.removesuffix(" (core dumped)"))
        if ended_by is not None and ended_by not in _BY_WISH:
            return Death(rank, node, ended_by)
    return None


def explain(run: RunFolder | None, code: int, said: str) -> str | None:
    """Return one line about ranks that ended without a word, None where a rank has said itself what is wrong.

    Args:
        run: the folder; None: the ranks ended before they took one up.
        code: exit code of the launcher; 128+n: signal n.
        said: what ranks and launcher wrote to stderr, or the end of it.
    """
    death = find_death(said)
    # A rank that raises says so, and aborts. One that misses another may say so, too: who was missed matters more.
    was_missed = death is not None and (death.signal is not None or (death.is_improper and _ABORT not in said))
    if OWN_ERROR in said and not was_missed:
        return None
    if death is None and (code <= 128 or code - 128 in _BY_WISH):
        return None
    if death is not None and death.code == 1 and (waited := _START_TIMEOUT.search(said)):
        return f"rank {death.rank} waited {waited[1]} for all ranks to start (comm.start_timeout_s): some never did"
    if death is None:
        return f"ended by {signal_name(code - 128)}{last_heard(run, 0) if run is not None else ''}"
    return f"{death}{last_heard(run, death.rank) if run is not None else ', before the training began'}"


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
        from hpclbfl.runlog.reader import read_file

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
) -> int:
    """Run a job's command on `num_ranks` ranks; say what became of a rank that ended without a word.

    Args:
        job: the job, its clients resolved.
        run_dir: the run folder that the command names; None: it names none.
        num_ranks, command, hosts: see `hpclbfl.launch.run_mpirun`.
        goes_on: the same command, given again, goes on from a checkpoint.

    Returns:
        The exit code, 128+n where signal n ended it.
    """
    run, said = LaunchedRun(job, run_dir), bytearray()
    code = run_mpirun(num_ranks, command, hosts=hosts, said=said)
    if code not in (0, REQUEUE_CODE) and (line := run.settle(code, said.decode(errors="replace"), goes_on)):
        say(f"{OWN_ERROR} {line}")
    return code


class LaunchedRun:
    """The run of a job that is about to be launched: which folder it takes, and what happens there.

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
        text = self._job.to_yaml()
        folders = [RunFolder(path) for path in sorted(Path("runs").glob(f"{self._job.slug()}-*"))]
        return [folder for folder in folders if _read(folder.config) == text]

    def find(self) -> RunFolder | None:
        """Return the folder in which the ranks have begun an attempt since; None: they have not come so far."""
        for folder in self._folders():
            status = folder.status()
            if status is not None and status != self._before.get(folder.path):
                return folder
        return None

    def settle(self, code: int, said: str, goes_on: bool) -> str | None:
        """Explain the end of the ranks (see `explain`), and write the status that they could not.

        Args:
            code: exit code of the launcher.
            said: the end of what was written to stderr.
            goes_on: the same command goes on from a checkpoint.
        """
        run = self.find()
        line = explain(run, code, said)
        if run is None or line is None:
            return line
        if _state(run) == "running" and not _is_taken(run):
            with suppress(HpclbflError):
                run.write_status("failed", error=line)
        does_go_on = goes_on and bool(checkpoint_steps(run.checkpoints))
        return f"{line}; the same command {'goes on from there' if does_go_on else 'starts anew'}"


def _is_taken(run: RunFolder) -> bool:
    """Whether a process of this machine is at it again already."""
    owner = holder(run.path)
    return owner is not None and any(process.is_running for process in owner.processes)


def _state(run: RunFolder) -> str | None:
    status = run.status()
    return None if status is None else status.state


def _read(path: Path) -> str | None:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8")
    return None
