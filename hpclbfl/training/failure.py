"""What a failing rank does: print one line that says why, and end all ranks."""

from __future__ import annotations

import signal
import time
from typing import NoReturn

from hpclbfl.comm.base import Communicator
from hpclbfl.core.errors import ConfigError, DataError, HpclbflError
from hpclbfl.core.signals import Interrupted
from hpclbfl.core.text import say_error, say_traceback

OTHERS_WAIT_S = 1.0
"""How long other ranks hold back an error that rank 0 most likely reports as well."""


def say_failure(
    comm: Communicator,
    error: BaseException,
    debug: bool,
    where: str = "",
    shared: type[HpclbflError] | tuple[type[HpclbflError], ...] = HpclbflError,
) -> tuple[int, str]:
    """Say on stderr what happened on this rank; the error has the last line.

    Args:
        debug: show the traceback of errors of ours, too.
        where: begins the line: "step 7: ".
        shared: errors that all ranks are likely to meet.

    Returns:
        The exit code, and the line without "hpclbfl: error: ".
    """
    code, line = describe_failure(comm, error, where)
    if comm.rank and isinstance(error, shared):
        time.sleep(OTHERS_WAIT_S)
    if debug or not isinstance(error, HpclbflError | Interrupted | KeyboardInterrupt):
        say_traceback(error)
    say_error(line)
    return code, line


def describe_failure(comm: Communicator, error: BaseException, where: str = "") -> tuple[int, str]:
    """The exit code of an error, and a line for it that names this rank if there are several.

    Args:
        where: see `say_failure`.
    """
    if isinstance(error, KeyboardInterrupt) and not isinstance(error, Interrupted):
        error = Interrupted(signal.SIGINT)
    if isinstance(error, Interrupted):
        code, line = 128 + error.signum, str(error)
    elif isinstance(error, HpclbflError):
        code, line = error.exit_code, str(error)
    else:
        code, line = 1, f"{type(error).__name__}: {error}"
    return code, f"{f'rank {comm.rank}: ' if comm.size > 1 else ''}{where}{line}"


def fail(comm: Communicator, error: BaseException, debug: bool) -> NoReturn:
    """Say what happened on this rank and end all of them: one that ended by itself would leave the others waiting."""
    code, _ = say_failure(comm, error, debug, shared=(ConfigError, DataError))
    comm.abort(code)
    raise SystemExit(code)
