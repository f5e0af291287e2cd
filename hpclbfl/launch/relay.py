"""Relays what ranks and launcher write to stderr, so that the last line of all tells how the job ended.

Open MPI tells of an end in notices of many lines, after the rank's own. They are held back for as long as an end takes,
and dropped where a line of ours says what happened.
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

SAID_BYTES = 1 << 16
"""How much of the end of the text is kept, and held back at most."""
LISTEN_S = 2.0
"""How long to wait for last output after the launcher has ended, seconds."""
HOLD_S = 5.0
"""A notice that is not followed by the end within this time, seconds, is a warning and is passed on."""


class Relay:
    """Copies a pipe to a stream, from a thread.

    Args:
        source: reading end of the pipe.
        target: file descriptor; default: this process's stderr.
    """

    def __init__(self, source: IO[bytes], target: int | None = None) -> None:
        own = sys.__stderr__.fileno() if sys.__stderr__ is not None else 2
        self._source, self._target = source, own if target is None else target
        self._said, self._held, self._line = bytearray(), bytearray(), bytearray()
        self._is_notice = Notices()
        self._is_mid_line = False
        self._is_over = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._copy, name="stderr", daemon=True)
        self._thread.start()

    def join(self) -> str:
        """Wait until all has come, or for a while; return the end of it."""
        # Something that outlives the launcher may hold the pipe open.
        self._thread.join(LISTEN_S)
        with self._lock:
            return self._said.decode(errors="replace")

    def finish(self, show: bool) -> None:
        """Drop what was held back, or write it; what may still come goes on as it comes."""
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
            chunk = os.read(self._source.fileno(), SAID_BYTES) if ready else b""
            if ready and not chunk:
                return
            with self._lock:
                if self._is_over:
                    self._write(chunk)
                    continue
                was_holding = bool(self._held or self._line)
                self._said += chunk
                del self._said[:-SAID_BYTES]
                self._write(self._pass_on(chunk))
                if not was_holding:
                    held_since = time.monotonic()
                elif time.monotonic() - held_since >= HOLD_S or len(self._held) > SAID_BYTES:
                    self._release()

    def _release(self) -> None:
        self._write(bytes(self._held + self._line))
        self._is_mid_line = bool(self._line)
        self._held.clear()
        self._line.clear()
        self._is_notice = Notices()

    def _pass_on(self, chunk: bytes) -> bytes:
        """Take the next part of the text, and return what of it is to be written now."""
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
            # A bar is redrawn without ever ending its line.
            now += rest
            self._is_mid_line = self._is_mid_line or bool(rest)
        else:
            self._line += rest
        return bytes(now)

    def _write(self, content: bytes) -> None:
        # Our own reader may have gone; the ranks go on.
        with suppress(OSError):
            while content:
                content = content[os.write(self._target, content) :]
