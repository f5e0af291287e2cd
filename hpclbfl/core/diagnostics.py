"""Diagnostics: everything that a command reports besides its results, through `logging` under the logger "hpclbfl".

The command line installs one handler, `on_terminal`, which writes to standard error. In a script that uses the package
nothing is printed: records go to the handlers that the script has set up, if any. Every message is made `printable`
before it becomes a record, so that no handler sees control characters. A message's title names its subject: the program
or a run. The line with which a failed command ends is not a diagnostic and is always printed (`core.text.say_error`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from hpclbfl.core.errors import ConfigError
from hpclbfl.core.launched import launched_rank
from hpclbfl.core.text import printable, say, shown

Level = Literal["error", "warning", "info", "debug"]
LEVELS: dict[Level, int] = {
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}
"""From the fewest lines to the most."""
DEFAULT: Level = "info"
LOG_LEVEL = "HPCLBFL_LOG_LEVEL"
"""Environment variable: the level of a command without --quiet or --verbose, and of all processes that it starts."""
PROGRAM = "hpclbfl"

_root = logging.getLogger(PROGRAM)


class Diagnostics:
    """The logger of one module.

    Args:
        name: the module's `__name__`.
        title: precedes each line on the terminal, with a colon; empty for none.
    """

    def __init__(self, name: str, title: str = PROGRAM) -> None:
        # The module that is run as a program is called `__main__`.
        self._logger = logging.getLogger(name if name.startswith(f"{PROGRAM}.") else PROGRAM)
        self._title = printable(title)

    def debug(self, line: object) -> None:
        """Log a detail: times, sizes, files."""
        self._log(logging.DEBUG, line)

    def info(self, line: object) -> None:
        """Log progress, or a fact that the user should know."""
        self._log(logging.INFO, line)

    def warning(self, line: object) -> None:
        """Log something that may make the results less reliable."""
        self._log(logging.WARNING, line)

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Log the duration of the block as a detail."""
        begin = time.perf_counter()
        yield
        self.debug(f"{what}: {time.perf_counter() - begin:.2f} s")

    def _log(self, level: int, line: object) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, printable(line), extra={"title": self._title}, stacklevel=3)


class Terminal(logging.Handler):
    """Writes each record as one line to the present standard error, or above a progress bar.

    Errors of the stream are raised, as they are for all other output.
    """

    def __init__(self, level: Level) -> None:
        super().__init__(_threshold(level))
        self._bar: tuple[str, Callable[[str], object]] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        line, title = record.getMessage(), getattr(record, "title", PROGRAM)
        bar_title, write = self._bar or (None, say)
        # The bar shows its own title.
        write(f"{title}: {line}" if title and title != bar_title else line)

    @contextmanager
    def above(self, title: str, write: Callable[[str], object]) -> Iterator[None]:
        """Inside the block, pass lines to `write`, which prints above the progress bar with this title."""
        before, self._bar = self._bar, (printable(title), write)
        try:
            yield
        finally:
            self._bar = before


def terminal() -> Terminal | None:
    """The installed handler; None if diagnostics do not go to the terminal."""
    return next((handler for handler in _root.handlers if isinstance(handler, Terminal)), None)


def shows(level: Level) -> bool:
    """Whether records of this level reach the terminal."""
    handler = terminal()
    return handler is not None and handler.level <= LEVELS[level]


def level_from(environ: Mapping[str, str]) -> Level:
    """The level that the environment names, or the default.

    Raises:
        ConfigError: it names an unknown level.
    """
    named = environ.get(LOG_LEVEL, "") or DEFAULT
    for level in LEVELS:
        if level == named:
            return level
    raise ConfigError(f"{LOG_LEVEL}: {shown(named)} is not a level; choose one of {', '.join(LEVELS)}")


@contextmanager
def on_terminal(level: Level | None = None) -> Iterator[None]:
    """Inside the block, write diagnostics to standard error; processes that are started there inherit the level.

    Args:
        level: the lowest level that is written; None: that of the environment, see `level_from`.

    Raises:
        ConfigError: the environment names an unknown level.
    """
    handler = Terminal(level_from(os.environ) if level is None else level)
    handlers, root_level, propagate, variable = _root.handlers, _root.level, _root.propagate, os.environ.get(LOG_LEVEL)
    _root.handlers = [*(other for other in handlers if not isinstance(other, Terminal)), handler]
    # Handlers of the root logger, such as another package's, would print each line again.
    _root.propagate = False
    try:
        _root.setLevel(handler.level)
        if level is not None:
            os.environ[LOG_LEVEL] = level
        yield
    finally:
        _root.handlers, _root.propagate = handlers, propagate
        _root.setLevel(root_level)
        os.environ.pop(LOG_LEVEL, None)
        if variable is not None:
            os.environ[LOG_LEVEL] = variable


def set_level(level: Level) -> None:
    """Change the level until `on_terminal` is left, also for processes that are started from now on."""
    handler = terminal()
    if handler is not None:
        handler.setLevel(_threshold(level))
        _root.setLevel(handler.level)
        os.environ[LOG_LEVEL] = level


def keep_silent(package: str) -> None:
    """Keep Python from printing another package's records where no handler takes them."""
    logging.getLogger(package).addHandler(logging.NullHandler())


def _threshold(level: Level) -> int:
    # Details are the same on all ranks, so only the first rank logs them.
    return max(LEVELS[level], logging.INFO) if launched_rank(os.environ) else LEVELS[level]


keep_silent(PROGRAM)
