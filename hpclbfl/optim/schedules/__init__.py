"""Schedules: what the learning rate is multiplied with as training goes on, from the end of the warm-up; one file each.

Each is made from its config, and is a pure function of the epoch (global samples / training set size).
"""

from __future__ import annotations

from collections.abc import Callable

Decay = Callable[[float], float]
"""Epoch to a factor."""
