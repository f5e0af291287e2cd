"""Schedules: the factor of the learning rate as training goes on, from the end of the warm-up; one file each.

Each is made from its config, and is a pure function of the epoch (samples of all clients / training set size).
"""

from __future__ import annotations

from collections.abc import Callable

Decay = Callable[[float], float]
"""Epoch to a factor."""
