"""Lets a run continue after the reader of its output, a pipe or a terminal, has gone."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, TextIO


class Unheard:
    """A text stream that discards its output, instead of raising, once it cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, if anybody listens."""
        try:
            return self._stream.write(text)
        except OSError:
            lead_nowhere(self._stream)
            return len(text)

    def flush(self) -> None:
        """Hand on what was written, if anybody listens."""
        try:
            self._stream.flush()
        except OSError:
            lead_nowhere(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def go_on_unheard() -> None:
    """Let standard output and error of this process be `Unheard`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, Unheard):
            setattr(sys, name, Unheard(stream))


def lead_nowhere(stream: TextIO) -> None:
    """Discard what a stream still holds and all that follows."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def open_closed_streams() -> None:
    """Give a process that was started without standard streams (`>&-`) streams that discard everything.

    Otherwise the first file that it opens would be its standard output, and get what is printed.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
