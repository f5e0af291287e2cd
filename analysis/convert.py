"""Converting figures to pictures, in several processes, as the conversion holds Python's interpreter lock.

`python -m hpclbfl.analysis.convert` is such a process. It reads requests from its standard input, one line of JSON
each, and answers with the bytes of the pictures, each after its length. It ends at the end of its input, and so with
the process that started it, and loads only the converter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue
from typing import IO, Any

import vl_convert

from hpclbfl.core.errors import EnvironmentFault

PNG_PPI = 200
MAX_PROCESSES = 4
FEW = 12
"""This many figures are drawn sooner than processes start."""
_LENGTH_BYTES = 8


def converted(spec: dict[str, Any], version: str, kinds: Sequence[str]) -> list[bytes]:
    """A definition with data as the bytes of `png`, `svg` and `pdf` files.

    Args:
        version: of Vega-Lite.
    """
    # The layout is computed once, for all kinds.
    svg = str(vl_convert.vegalite_to_svg(spec, vl_version=version))
    found = []
    for kind in kinds:
        if kind == "png":
            found.append(bytes(vl_convert.svg_to_png(svg, ppi=PNG_PPI)))
        else:
            found.append(svg.encode() if kind == "svg" else bytes(vl_convert.svg_to_pdf(svg)))
    return found


def convert_all(specs: Iterable[dict[str, Any]], version: str, kinds: Sequence[str]) -> Iterator[list[bytes]]:
    """`converted` of each definition, in order; many definitions are shared among processes, one per usable core.

    Raises:
        EnvironmentFault: a process cannot be started, or has died.
    """
    wanted = list(specs)
    count = min(MAX_PROCESSES, len(os.sched_getaffinity(0)))
    if count == 1 or len(wanted) <= FEW:
        for spec in wanted:
            yield converted(spec, version, kinds)
        return
    with ExitStack() as stack:
        free: SimpleQueue[_Process] = SimpleQueue()
        pool = stack.enter_context(ThreadPoolExecutor(count))
        for _ in range(count):
            free.put(stack.enter_context(_Process()))

        def convert(spec: dict[str, Any]) -> list[bytes]:
            process = free.get()
            try:
                return process.convert(spec, version, kinds)
            finally:
                free.put(process)

        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        yield from pool.map(convert, wanted)


class _Process:
    def __init__(self) -> None:
        words = [sys.executable, "-m", "hpclbfl.analysis.convert"]
        try:
            # In a session of its own: upon Ctrl-C the process that started it ends it.
            self._process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            raise EnvironmentFault(f"a process that draws figures cannot be started: {error}") from error

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def convert(self, spec: dict[str, Any], version: str, kinds: Sequence[str]) -> list[bytes]:
        """See `converted`."""
        into, out = self._process.stdin, self._process.stdout
        if into is None or out is None:
            raise RuntimeError("the process has no pipes")
        try:
            into.write(json.dumps([spec, version, list(kinds)]).encode() + b"\n")
            into.flush()
            return [_read(out, int.from_bytes(_read(out, _LENGTH_BYTES), "little")) for _ in kinds]
        except (BrokenPipeError, EOFError) as error:
            code = self._process.wait()
            raise EnvironmentFault(f"a process that draws figures has ended with {code} (out of memory?)") from error


def _read(stream: IO[bytes], count: int) -> bytes:
    found = stream.read(count)
    if len(found) < count:
        raise EOFError
    return found


def _serve() -> None:
    for line in sys.stdin.buffer:
        spec, version, kinds = json.loads(line)
        for picture in converted(spec, version, kinds):
            sys.stdout.buffer.write(len(picture).to_bytes(_LENGTH_BYTES, "little") + picture)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
