"""Batch policies: how many samples each client processes in a step.

A policy is pure: it is fed with rows that every rank has, so that every rank computes the same plan, and its state is
explicit and checkpointed. The global batch B of a plan is kept exactly, except by `noise_scale`, whose business it is.
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
    """Batch sizes from a step on."""

    sizes: tuple[int, ...]
    """b_c of every client, samples."""
    reason: str
    """Why, in a few words; stands in the log."""


@dataclass(frozen=True)
class Observation:
    """What all ranks know of a finished step."""

    sizes: tuple[int, ...]
    """b_c of every client in that step, samples."""
    seconds: FloatArray
    """[R] compute time of every rank (data, forward, backward, update); NaN where it was not measured."""
    b_simple: float = float("nan")
    """The noise scale, samples, where it is measured."""
    ends_epoch: bool = False
    """Whether the step is the first one after a whole number of epochs."""


class BatchPolicy(Protocol):
    """See the package."""

    needs_seconds: bool
    """Whether ranks must tell each other their times."""
    warnings: tuple[str, ...]
    """What is to be told as the run begins, a line each."""

    def init(self, sizes: tuple[int, ...]) -> tuple[Plan, Any]:
        """The first plan, from the job's sizes, and the state."""

    def update(self, seen: Observation, state: Any) -> tuple[Plan | None, Any]:
        """Take a step; a new plan, if there is one, holds from the next step on."""
