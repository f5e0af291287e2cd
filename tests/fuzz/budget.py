"""Runs a hypothesis target until its time is up."""

import os
import random
import time
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import SearchStrategy

ROUND = 100
"""Examples between two looks at the clock."""


def fuzz(strategy: SearchStrategy[Any], check: Callable[[Any], None], at_once: int = ROUND) -> int:
    """Check examples of the strategy, other ones in every call, for HPCLBFL_FUZZ_S seconds; return their number.

    Args:
        at_once: examples between two looks at the clock; few where each takes long.
    """
    end = time.monotonic() + float(os.environ.get("HPCLBFL_FUZZ_S", "4"))
    count = 0

    def counted(example: Any) -> None:
        nonlocal count
        count += 1
        check(example)

    while time.monotonic() < end:
        run = settings(max_examples=at_once, deadline=None, database=None, suppress_health_check=list(HealthCheck))(
            seed(random.getrandbits(64))(given(strategy)(counted))
        )
        run()
    print(f"{count} examples")
    return count
