"""Batch policies: how many samples each client processes in a step.

A policy is a pure function: its input is the same on every rank, so every rank computes the same plan, and its state is
explicit and checkpointed. All policies keep the global batch B exactly, except `noise_scale` and `critical_phase`,
which change it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hpclbfl.core.state import checkpointed

FloatArray = NDArray[np.float64]


@checkpointed
@dataclass(frozen=True)
class Plan:
    """Batch sizes from the next step on."""

    sizes: tuple[int, ...]
    """b_c of every client, samples."""
    reason: str
    """Why, in a few words; written to the log."""


@dataclass(frozen=True)
class Observation:
    """What all ranks know about a finished step."""

    sizes: tuple[int, ...]
    """b_c of every client in that step, samples."""
    seconds: FloatArray
    """[R] compute time of every rank (data, forward, backward, update); NaN where it was not measured."""
    b_simple: float = float("nan")
    """The noise scale, samples; NaN if it is not measured."""
    ends_epoch: bool = False
    """Whether this step completed an epoch."""
    change: float = float("nan")
    """That `BatchingConfig.watched_change` sees; NaN if it is not known, or nothing is watched."""


class BatchPolicy(Protocol):
    """How batch sizes are chosen."""

    needs_seconds: bool
    """Whether it needs the times of all ranks."""
    warnings: tuple[str, ...]
    """Reported when the run starts, a line each."""

    def init(self, sizes: tuple[int, ...]) -> tuple[Plan, Any]:
        """The first plan, from the job's sizes, and the state."""

    def update(self, seen: Observation, state: Any) -> tuple[Plan | None, Any]:
        """Process a finished step; a plan other than None applies from the next step on."""
