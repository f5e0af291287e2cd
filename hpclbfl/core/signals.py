"""Signals: those that ask a run to stop, those that end a command, and how a command ends then.

A run notes the wish, acts upon it between two steps, and exits with 75 once its state is saved. All else that a signal
ends has the exit code 128+n. A signal that is ignored when this process starts (HUP under nohup) stays ignored.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

from hpclbfl.core.launched import launched_size
from hpclbfl.core.streams import lead_nowhere, open_closed_streams
from hpclbfl.core.text import say_error

ASKING = (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP, signal.SIGXCPU)
"""Slurm, the shell, a terminal that goes away and a limit of processor time say that a run is to stop."""
ENDING = (*ASKING, signal.SIGUSR1)
"""These, and Ctrl-C, end a command that has no state to save."""
REPEATED = (signal.SIGHUP, signal.SIGXCPU)
"""Sent repeatedly without a second request: HUP by terminal and shell, XCPU every second."""

LOOK_EVERY_S, SWALLOWED_AFTER = 0.2, 5
"""An interruption that is in nobody's hands at so many looks in a row has been swallowed."""
AGAIN_S = 0.02
"""So long after an interruption was dropped it comes again."""

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


class Interrupted(SystemExit):
    """A signal ended what was under way; ends the process with 128+n."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum

    def __str__(self) -> str:
        return f"interrupted by {signal_name(self.signum)}"


class CtrlC(Interrupted, KeyboardInterrupt):
    """Ctrl-C, for those who wait for a KeyboardInterrupt, too.

    If a plain KeyboardInterrupt passes through code that an extension runs, CPython kills itself with SIGINT at its
    end, even if it was caught.
    """

    def __init__(self, signum: int = signal.SIGINT) -> None:
        super().__init__(signum)


def signal_name(number: int) -> str:
    """Return SIGKILL for 9; `signal 99` for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@contextmanager
def handling(signums: Iterable[int], handler: Handler) -> Iterator[None]:
    """While entered, have the handler called for those of these signals that are not ignored.

    Outside the main thread Python allows no handlers: nothing happens there.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        heard = [signum for signum in signums if signal.getsignal(signum) != signal.SIG_IGN]
        before = {signum: signal.signal(signum, handler) for signum in heard}
    try:
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)


class StopRequest:
    """While it is entered, signals that ask to stop are noted instead of ending the process."""

    def __init__(self) -> None:
        self.name = ""
        """Of the signal that came; empty while none has."""
        self._handling = handling(ASKING, self._note)

    def __bool__(self) -> bool:
        return bool(self.name)

    def __enter__(self) -> StopRequest:
        self._handling.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._handling.__exit__(kind, error, tb)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(signum).name


@contextmanager
def orderly_end(environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """While entered, a signal, or a reader that went away (`| head`), ends the process without a traceback.

    The exit code is 128+n, and one line names the signal; of the reader, whose wish it was, nothing is said. A rank of
    an MPI job lets a signal end it, which its launcher tells.
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
                # Else Python would try again at its end.
                lead_nowhere(sys.stdout)
                lead_nowhere(sys.stderr)
                raise SystemExit(128 + signal.SIGPIPE) from None
            interrupted = cause if isinstance(cause, Interrupted) else Interrupted(signal.SIGINT)
            with suppress(OSError):
                say_error(interrupted)
            raise interrupted from None


class _Ending:
    """Ends a command by an exception, upon the first signal; a second one ends the process at once."""

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
        """Interrupt again where the interruption was swallowed, as by a bare `except` in a module being imported."""
        unseen = 0
        while unseen < SWALLOWED_AFTER:
            if self._is_over.wait(LOOK_EVERY_S):
                return
            unseen = 0 if _is_in_hand() else unseen + 1
        self._is_under_way = False
        os.kill(os.getpid(), signum)

    @contextmanager
    def insisting(self) -> Iterator[None]:
        """While entered, an interruption that Python drops comes again."""
        before = sys.unraisablehook

        def hook(dropped: sys.UnraisableHookArgs, /) -> None:
            # It came in the middle of a finalizer, which nothing can be raised from.
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
            # The command ends; a signal that came now would meet Python's own end.
            for timer in waiting:
                timer.cancel()


def _is_in_hand() -> bool:
    """Whether the main thread is in a `finally` or `except` on an interruption's way out."""
    found: Any = sys._current_exceptions().get(threading.main_thread().ident or 0)
    # A triple before Python 3.12.
    error = found[1] if isinstance(found, tuple) else found
    while error is not None and not isinstance(error, Interrupted | KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _cause(error: BaseException) -> BrokenPipeError | KeyboardInterrupt | Interrupted | None:
    """What ended the command, where nobody has said so yet; None: an error of its own."""
    if isinstance(error, BrokenPipeError | KeyboardInterrupt | Interrupted):
        return error
    if isinstance(error, SystemExit):
        context = error.__context__
        # rich and typer exit with 1 in answer to a broken pipe, typer with its Exit(130) to Ctrl-C.
        if isinstance(context, BrokenPipeError):
            return context
        if isinstance(context, RuntimeError) and isinstance(context.__cause__, KeyboardInterrupt):
            return context.__cause__
    return None
