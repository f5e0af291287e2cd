"""Relays what ranks and launcher write to stderr, so that the very last line tells how the job ended.

Open MPI reports the end of a rank in notices of many lines, after the rank's own output. They are held back until the
job has ended, and dropped where a line of ours says what happened.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from contextlib import suppress
from typing import IO

from hpclbfl.launch.messages import Notices, is_echo

TAIL_BYTES = 1 << 16
"""Size of the end of the text that is kept, and limit of what is held back."""
LISTEN_S = 2.0
"""How long to wait for remaining output after the launcher has ended, seconds."""
HOLD_S = 5.0
"""A notice that is not followed by the end within this time, seconds, is only a warning and is written."""


class Relay:
    """Copies a pipe to a file descriptor, in a thread.

    Args:
        source: reading end of the pipe.
        target: file descriptor; default: this process's stderr.
    """

    def __init__(self, source: IO[bytes], target: int | None = None) -> None:
        own = sys.__stderr__.fileno() if sys.__stderr__ is not None else 2
        self._source, self._target = source, own if target is None else target
        self._tail, self._held, self._line = bytearray(), bytearray(), bytearray()
        self._is_notice = Notices()
        self._is_mid_line = False
        self._is_over = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._copy, name="stderr", daemon=True)
        self._thread.start()

    def join(self) -> str:
        """Wait for the end of the output, or for LISTEN_S; return the tail of it."""
        # A process that outlives the launcher may keep the pipe open.
        self._thread.join(LISTEN_S)
        with self._lock:
            return self._tail.decode(errors="replace")

    def finish(self, show: bool) -> None:
        """Drop what was held back, or write it; later output is copied unchanged."""
        with self._lock:
            self._held += self._line
            self._is_over = True
            if show:
                self._write(bytes(self._held))

    def _copy(self) -> None:
        held_since = 0.0
        while True:
            wait = max(0.0, held_since + HOLD_S - time.monotonic()) if self._held or self._line else None
            ready = select.select([self._source], [], [], wait)[0]
            chunk = os.read(self._source.fileno(), TAIL_BYTES) if ready else b""
            if ready and not chunk:
                return
            with self._lock:
                if self._is_over:
                    self._write(chunk)
                    continue
                was_holding = bool(self._held or self._line)
                self._tail += chunk
                del self._tail[:-TAIL_BYTES]
                self._write(self._pass_on(chunk))
                if not was_holding:
                    held_since = time.monotonic()
                elif time.monotonic() - held_since >= HOLD_S or len(self._held) > TAIL_BYTES:
                    self._release()

    def _release(self) -> None:
        self._write(bytes(self._held + self._line))
        self._is_mid_line = bool(self._line)
        self._held.clear()
        self._line.clear()
        self._is_notice = Notices()

    def _pass_on(self, chunk: bytes) -> bytes:
        """Add a part of the text, and return what is to be written now."""
        now = bytearray()
        *lines, rest = bytes(self._line + chunk).split(b"\n")
        self._line.clear()
        for line in lines:
            text = line.decode(errors="replace")
            if self._is_mid_line or not is_echo(text):
                held = not self._is_mid_line and self._is_notice(text)
                (self._held if held else now).extend(line + b"\n")
            self._is_mid_line = False
        if self._is_mid_line or not self._is_notice.may_begin(rest.decode(errors="replace")):
            # A progress bar is redrawn without ever ending its line.
            now += rest
            self._is_mid_line = self._is_mid_line or bool(rest)
        else:
            self._line += rest
        return bytes(now)

    def _write(self, content: bytes) -> None:
        # The reader of our stderr may have ended; the ranks continue.
        with suppress(OSError):
            while content:
                content = content[os.write(self._target, content) :]
