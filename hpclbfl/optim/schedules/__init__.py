"""Schedules: the factor of the learning rate after the warm-up, as a function of the epoch; one file each.

Each is created from its config and is a pure function of the epoch (samples of all clients / training set size).
"""

from __future__ import annotations

from collections.abc import Callable

Decay = Callable[[float], float]
"""Maps an epoch to a factor."""
