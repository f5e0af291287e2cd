"""Signals: requests to stop a run, and the orderly end of a command.

A run records the request, acts on it between two steps, and exits with 75 after saving its state. Any other command
that a signal ends has the exit code 128+n. A signal that is ignored when the process starts (HUP under nohup) stays
ignored.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any

from hpclbfl.core.launched import launched_size
from hpclbfl.core.streams import discard_output, open_closed_streams
from hpclbfl.core.text import say_error

ASKING = (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP, signal.SIGXCPU)
"""Requests to stop a run: from Slurm or a shell, a closed terminal, a limit of processor time."""
ENDING = (*ASKING, signal.SIGUSR1)
"""These, and Ctrl-C, end a command that has no state to save."""
REPEATED = (signal.SIGHUP, signal.SIGXCPU)
"""Signals that are repeated for one request: HUP comes from terminal and shell, XCPU every second."""

CHECK_EVERY_S, SWALLOWED_AFTER = 0.2, 5
"""An interruption that no code is handling at so many checks in a row was swallowed."""
AGAIN_S = 0.02
"""Delay after which a dropped interruption is sent again."""

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


class Interrupted(SystemExit):
    """A signal interrupted the command; ends the process with exit code 128+n."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum

    def __str__(self) -> str:
        return f"interrupted by {signal_name(self.signum)}"


class CtrlC(Interrupted, KeyboardInterrupt):
    """Ctrl-C; also a KeyboardInterrupt, for code that catches one.

    A plain KeyboardInterrupt will not do: if it passes through code that an extension module runs, CPython kills itself
    with SIGINT at its end, even if the exception was caught.
    """

    def __init__(self, signum: int = signal.SIGINT) -> None:
        super().__init__(signum)


def signal_name(number: int) -> str:
    """SIGKILL for 9; `signal 99` for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@contextmanager
def handling(signums: Iterable[int], handler: Handler) -> Iterator[None]:
    """Inside the block, the handler is called for those of these signals that are not ignored.

    Python allows handlers in the main thread only; in other threads this does nothing.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        handled = [signum for signum in signums if signal.getsignal(signum) != signal.SIG_IGN]
        before = {signum: signal.signal(signum, handler) for signum in handled}
    try:
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)


class StopRequest(ExitStack):
    """Inside the block, signals that ask to stop are recorded instead of ending the process."""

    def __init__(self) -> None:
        super().__init__()
        self.name = ""
        """Name of the last such signal; empty if there was none."""

    def __bool__(self) -> bool:
        return bool(self.name)

    def __enter__(self) -> StopRequest:
        self.enter_context(handling(ASKING, self._record))
        return self

    def _record(self, signum: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(signum).name


@contextmanager
def orderly_end(environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Inside the block, a signal or a closed output pipe (`| head`) ends the process without a traceback.

    The exit code is 128+n. One line names the signal; a closed pipe is not reported. In a rank of an MPI job
    signals keep their default action, and the launcher reports them.
    """
    open_closed_streams()
    ending = _Ending()
    alone = launched_size(environ) == 1
    with handling((*ENDING, signal.SIGINT) if alone else (), ending.handle), ending.insisting():
        try:
            try:
                yield
            finally:
                sys.stdout.flush()
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            if (cause := _cause(error)) is None:
                raise
            if isinstance(cause, BrokenPipeError):
                # Otherwise Python would try to write again at its end.
                discard_output(sys.stdout)
                discard_output(sys.stderr)
                raise SystemExit(128 + signal.SIGPIPE) from None
            interrupted = cause if isinstance(cause, Interrupted) else Interrupted(signal.SIGINT)
            with suppress(OSError):
                say_error(interrupted)
            raise interrupted from None


class _Ending:
    """Ends a command with an exception on the first signal; a second signal ends the process at once."""

    def __init__(self) -> None:
        self._is_under_way = False
        self._is_over = threading.Event()

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """For `signal.signal`."""
        if not self._is_under_way:
            self._is_under_way = True
            threading.Thread(target=self._persist, args=(signum,), name="ending", daemon=True).start()
            raise CtrlC() if signum == signal.SIGINT else Interrupted(signum)
        if signum not in REPEATED:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    def _persist(self, signum: int) -> None:
        """Interrupt again if the exception was swallowed, for example by a bare `except` in an imported module."""
        unhandled = 0
        while unhandled < SWALLOWED_AFTER:
            if self._is_over.wait(CHECK_EVERY_S):
                return
            unhandled = 0 if _is_being_handled() else unhandled + 1
        self._is_under_way = False
        os.kill(os.getpid(), signum)

    @contextmanager
    def insisting(self) -> Iterator[None]:
        """Inside the block, an interruption that Python drops is sent again."""
        before = sys.unraisablehook

        def hook(dropped: sys.UnraisableHookArgs, /) -> None:
            # Exceptions raised inside a finalizer are dropped.
            error = dropped.exc_value
            if not isinstance(error, Interrupted | KeyboardInterrupt):
                before(dropped)
                return
            self._is_under_way = False
            signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
            again = threading.Timer(AGAIN_S, os.kill, (os.getpid(), signum))
            again.daemon = True
            again.start()
            waiting.append(again)

        waiting: list[threading.Timer] = []
        sys.unraisablehook = hook
        try:
            yield
        finally:
            sys.unraisablehook = before
            self._is_over.set()
            # The command has ended; a signal now would kill the process during Python's shutdown.
            for timer in waiting:
                timer.cancel()


def _is_being_handled() -> bool:
    """Whether the main thread is in a `finally` or `except` block that an interruption passes through."""
    found: Any = sys._current_exceptions().get(threading.main_thread().ident or 0)
    # Before Python 3.12 it is a triple.
    error = found[1] if isinstance(found, tuple) else found
    while error is not None and not isinstance(error, Interrupted | KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _cause(error: BaseException) -> BrokenPipeError | KeyboardInterrupt | Interrupted | None:
    """The signal or closed pipe behind an exception, if it has not been reported yet; None for any other error."""
    if isinstance(error, BrokenPipeError | KeyboardInterrupt | Interrupted):
        return error
    if isinstance(error, SystemExit):
        context = error.__context__
        # rich and typer turn a broken pipe into exit code 1, typer turns Ctrl-C into Exit(130).
        if isinstance(context, BrokenPipeError):
            return context
        if isinstance(context, RuntimeError) and isinstance(context.__cause__, KeyboardInterrupt):
            return context.__cause__
    return None
