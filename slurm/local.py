"""A sweep on this machine, without a scheduler: a few runs at a time, in the same folders and with the same outcome."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType

from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.core.errors import EnvironmentFault
from hpclbfl.core.signals import ENDING, handling
from hpclbfl.launch.children import end_session, tethered
from hpclbfl.launch.mpirun import available_cores
from hpclbfl.runs.folder import RunFolder, Status
from hpclbfl.runs.lock import LockHeld, RunLock, acquire
from hpclbfl.slurm.expand import Run
from hpclbfl.slurm.folder import SweepFolder
from hpclbfl.slurm.outcome import Outcome, settle
from hpclbfl.slurm.ranks import Launch, launch_command
from hpclbfl.slurm.resources import ProfileConfig
from hpclbfl.slurm.state import last_line

logger = Diagnostics(__name__)

GRACE_S = 60.0
"""After the first Ctrl-C runs have so long to save themselves; a second one ends them at once."""
_POLL_S = 0.1
_LAST_GRACE_S = 5.0


@dataclass(frozen=True)
class _Child:
    """A run under way."""

    run: Run
    folder: RunFolder
    lease: RunLock
    before: Status | None
    """The run's status before it was started."""
    process: subprocess.Popen[bytes]


@dataclass(frozen=True)
class Summary:
    """What became of the runs."""

    done: int
    failed: int
    left: int
    """Not started, or stopped on the way."""
    signal: int | None
    """What ended the sweep before its end."""

    @property
    def exit_code(self) -> int:
        """0: all done (or in others' hands), 3: some failed, 128+n: ended by signal n."""
        return 128 + self.signal if self.signal is not None else 3 if self.failed else 0


class LocalSweep:
    """Runs what is left of a sweep here.

    Args:
        folder: the sweep's.
        profile: of kind local.
    """

    def __init__(self, folder: SweepFolder, profile: ProfileConfig) -> None:
        self._folder, self._profile = folder, profile
        self._parallel = profile.max_parallel or 1
        self._children: list[_Child] = []
        self._signals: list[int] = []
        self._is_killing = False
        self._done = self._failed = self._stopped = self._owned = 0

    def run(self, runs: Sequence[Run]) -> Summary:
        """Run these runs to their ends, or until a signal; returns once no child is left.

        Raises:
            EnvironmentFault: a folder cannot be written, or there is no mpirun.
        """
        waiting = list(runs)
        with handling((signal.SIGINT, *ENDING), self._receive):
            try:
                while (waiting and not self._signals) or self._children:
                    while waiting and len(self._children) < self._parallel and not self._signals:
                        self._start(waiting.pop(0), len(runs) - len(waiting), len(runs))
                    if self._signals:
                        self._end_children()
                    self._reap()
                    time.sleep(_POLL_S)
            except BaseException:
                self._kill(signal.SIGKILL)
                self._reap(wait=True)
                raise
        return Summary(
            done=self._done,
            failed=self._failed,
            left=len(waiting) + self._stopped,
            signal=self._signals[0] if self._signals else None,
        )

    def _receive(self, number: int, frame: FrameType | None) -> None:
        # A closing terminal sends HUP twice, and does not mean "at once".
        if number in (signal.SIGINT, signal.SIGTERM) or not self._signals:
            self._signals.append(number)

    def _start(self, run: Run, number: int, total: int) -> None:
        folder = self._folder.run(run.id)
        try:
            lease = acquire(folder.path)
        except LockHeld as held:
            logger.info(f"[{number}/{total}] left alone: {held}")
            return
        try:
            launch = Launch(
                job_file=self._folder.job_file(run.id),
                run_dir=folder.path,
                ranks=run.ranks,
                launcher="local",
                cpus_per_rank=self._profile.cpus_per_rank,
                args=self._profile.launcher_args,
            )
            cores = max(1, available_cores() // self._parallel)
            argv, env = launch_command(launch, {**os.environ, **lease.environment()}, cores)
            before = folder.status()
            log = self._folder.log(run.id)
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                # In a session of its own Ctrl-C does not reach it but through us.
                process = subprocess.Popen(
                    tethered(argv),
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        except OSError as error:
            lease.release()
            raise EnvironmentFault(f"{self._folder.path}: cannot be written: {error.strerror or error}") from error
        except BaseException:
            lease.release()
            raise
        self._children.append(_Child(run, folder, lease, before, process))
        logger.info(f"[{number}/{total}] {run.id} {run.label}: started")

    def _reap(self, wait: bool = False) -> None:
        for child in list(self._children):
            code = child.process.wait() if wait else child.process.poll()
            if code is None:
                continue
            self._children.remove(child)
            try:
                if code < 0:
                    # A launcher that was killed leaves its ranks behind; they end by themselves, or here.
                    end_session(child.process.pid, 0.0 if self._is_killing else GRACE_S)
                words = last_line(self._folder.log(child.run.id))
                exit_code = 128 - code if code < 0 else code
                self._count(child, settle(child.folder, child.before, exit_code, bool(self._signals), words))
            finally:
                child.lease.release()

    def _count(self, child: _Child, outcome: Outcome) -> None:
        self._done += outcome.word == "done"
        self._failed += outcome.word == "failed"
        self._stopped += outcome.word == "stopped"
        where = f" ({self._folder.log(child.run.id)})" if outcome.word == "failed" else ""
        tell = logger.warning if outcome.word == "failed" else logger.info
        tell(f"{child.run.id} {child.run.label}: {outcome}{where}")

    def _end_children(self) -> None:
        """Ask all to save themselves; kill those that do not end in time, or at once when asked again."""
        logger.info(f"stopping {len(self._children)} run{'s' if len(self._children) != 1 else ''}; again to kill")
        self._kill(signal.SIGUSR2)
        for grace_s, number in ((GRACE_S, signal.SIGTERM), (_LAST_GRACE_S, signal.SIGKILL)):
            end, count = time.monotonic() + grace_s, len(self._signals)
            while (
                self._children and time.monotonic() < end and (len(self._signals) == count or number == signal.SIGKILL)
            ):
                self._reap()
                time.sleep(_POLL_S)
            if self._children:
                self._kill(number)
        self._reap(wait=True)

    def _kill(self, number: int) -> None:
        self._is_killing = number == signal.SIGKILL
        for child in self._children:
            with suppress(ProcessLookupError):
                # mpirun hands USR2 on to its ranks, and ends them upon TERM; those that KILL leaves are ended after it.
                child.process.send_signal(number)
