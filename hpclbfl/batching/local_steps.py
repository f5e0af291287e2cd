"""Fewer local steps for slow clients, so that all clients finish a round at the same time.

In a round of H steps a client of speed v computes H v / v_max of them, evenly spread; in the average its parameters are
weighted by the samples that it processed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hpclbfl.batching import FloatArray
from hpclbfl.batching.bounds import check_one_client_per_rank


def equal_steps(most: int | None, num_clients: int, num_ranks: int) -> NDArray[np.int64] | None:
    """[C] local steps of every client before speeds are known.

    Args:
        most: H of the fastest client; None: local steps do not follow the speed.

    Raises:
        ConfigError: there is not one client per rank.
    """
    if most is None:
        return None
    check_one_client_per_rank("sync.local_steps proportional", num_clients, num_ranks)
    return np.full(num_clients, most, np.int64)


def steps_by_speed(step_seconds: FloatArray, max_local_steps: int) -> NDArray[np.int64]:
    """[R] local steps of every client, at least 1; the fastest client has `max_local_steps`.

    Args:
        step_seconds: [R] compute time of a step, s.
        max_local_steps: H.
    """
    steps = np.floor(max_local_steps * step_seconds.min() / step_seconds + 1e-9)
    return np.asarray(np.maximum(steps, 1), dtype=np.int64)


def takes_part(place: int, local_steps: NDArray[np.int64], max_local_steps: int) -> NDArray[np.bool_]:
    """[R] whether each client computes step `place` of the round, 0 to H - 1."""
    taken: NDArray[np.bool_] = (place + 1) * local_steps // max_local_steps > place * local_steps // max_local_steps
    return taken
