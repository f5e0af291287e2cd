"""A sweep on this machine without a scheduler: a few runs at a time, in the same folders and with the same outcome."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
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
from hpclbfl.slurm.outcome import conclude
from hpclbfl.slurm.ranks import launch_command, plan_launch
from hpclbfl.slurm.resources import ProfileConfig
from hpclbfl.slurm.state import read_tail, size_of

logger = Diagnostics(__name__)

GRACE_S = 60.0
"""Time that runs have to save their state after the first Ctrl-C; a second one ends them at once."""
_POLL_S = 0.1
_LAST_GRACE_S = 5.0


@dataclass(frozen=True)
class _Child:
    """A run in progress."""

    run: Run
    folder: RunFolder
    lock: RunLock
    before: Status | None
    """The run's status before it was started."""
    log_begin: int
    """Size of its log before it was started, bytes."""
    process: subprocess.Popen[bytes]


@dataclass(frozen=True)
class Summary:
    """Numbers of runs by outcome."""

    done: int
    failed: int
    left: int
    """Not started, or stopped before their end."""
    signal: int | None
    """What ended the sweep before its end."""

    @property
    def exit_code(self) -> int:
        """0: all done (or left to others), 3: some failed, 128+n: ended by signal n."""
        return 128 + self.signal if self.signal is not None else 3 if self.failed else 0


class LocalSweep:
    """Runs the remaining runs of a sweep on this machine.

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
        self._counts: Counter[str] = Counter()

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
                        self._start(waiting.pop(0), f"[{len(runs) - len(waiting)}/{len(runs)}]")
                    if self._signals:
                        self._end_children()
                    self._reap()
                    time.sleep(_POLL_S)
            except BaseException:
                self._kill(signal.SIGKILL)
                self._reap(wait=True)
                raise
        counts = self._counts
        signum = self._signals[0] if self._signals else None
        return Summary(counts["done"], counts["failed"], len(waiting) + counts["stopped"], signum)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        # A closing terminal sends SIGHUP twice, which does not mean "at once".
        if number in (signal.SIGINT, signal.SIGTERM) or not self._signals:
            self._signals.append(number)

    def _start(self, run: Run, place: str) -> None:
        folder = self._folder.run(run.id)
        try:
            lock = acquire(folder.path)
        except LockHeld as held:
            logger.info(f"{place} left alone: {held}")
            return
        with ExitStack() as on_failure:
            on_failure.callback(lock.release)
            self._children.append(self._spawn(run, folder, lock))
            on_failure.pop_all()
        logger.info(f"{place} {run.id} {run.label}: started")

    def _spawn(self, run: Run, folder: RunFolder, lock: RunLock) -> _Child:
        launch = plan_launch(run, self._folder, self._profile)
        cores = max(1, available_cores() // self._parallel)
        argv, env = launch_command(launch, {**os.environ, **lock.environment()}, cores)
        log, before = self._folder.log(run.id), folder.status()
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            begin = size_of(log)
            with log.open("ab") as output:
                # In a session of its own, so that Ctrl-C reaches it only through us.
                process = subprocess.Popen(
                    tethered(argv),
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        except OSError as error:
            raise EnvironmentFault(f"{self._folder.path}: cannot be written: {error.strerror or error}") from error
        return _Child(run, folder, lock, before, begin, process)

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
                self._conclude(child, 128 - code if code < 0 else code)
            finally:
                child.lock.release()

    def _conclude(self, child: _Child, code: int) -> None:
        log = self._folder.log(child.run.id)
        outcome = conclude(child.folder, child.before, code, bool(self._signals), read_tail(log, child.log_begin))
        self._counts[outcome.word] += 1
        has_failed = outcome.word == "failed"
        tell = logger.warning if has_failed else logger.info
        tell(f"{child.run.id} {child.run.label}: {outcome}{f' ({log})' if has_failed else ''}")

    def _end_children(self) -> None:
        """Ask all to save their state; kill those that do not end in time, or at once if asked again."""
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
                # mpirun passes USR2 on to its ranks and ends them upon TERM; `_reap` ends those that KILL leaves.
                child.process.send_signal(number)
