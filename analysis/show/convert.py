"""Converting figures to pictures, in several processes, as the conversion holds Python's interpreter lock."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import repeat
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

import vl_convert

from hpclbfl.core.errors import EnvironmentFault

PNG_PPI = 200
MAX_PROCESSES = 4
FEW = 12
"""This many figures are drawn sooner than processes start."""


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
        EnvironmentFault: a process cannot be started, or has ended early.
    """
    wanted = list(specs)
    count = min(MAX_PROCESSES, len(os.sched_getaffinity(0)))
    if count == 1 or len(wanted) <= FEW:
        for spec in wanted:
            yield converted(spec, version, kinds)
        return
    pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=_start)
    try:
        yield from pool.map(converted, wanted, repeat(version), repeat(kinds))
    except (BrokenProcessPool, OSError) as error:
        # A process that dies while it starts breaks the pool or the pipe to it.
        raise EnvironmentFault("a process that draws figures has ended (out of memory?)") from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _start() -> None:
    """Ignore Ctrl-C, which the parent handles, and end with the parent, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)
