"""Time by batch size: of a step (Eq. 2 without t_sync, Fig. 1 and 5) and of an epoch (Fig. 2).

t_c is forward, backward and update, t_mov loading the batch and moving it to the device, as in a run's log. Both are
linear from the batch size on that keeps the device busy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hpclbfl.batching.cost_model import BentLine, fit_bent_line, medians, standard_error

SMALLEST = 2
"""Smallest batch size: BatchNorm cannot train on a single sample."""
USUAL = 8
"""Smallest batch size to time where the device can train larger ones."""
NEAR_BEST = 0.01
"""Relative difference at which an epoch counts as short as the shortest one."""


@dataclass(frozen=True)
class TimeRow:
    """One timed step."""

    batch: int
    repetition: int
    t_mov_s: float
    t_c_s: float


@dataclass(frozen=True)
class TimeFit:
    """Time of a rank's step, s, by batch size."""

    step: BentLine
    """t_mov + t_c."""
    t_c: BentLine
    t_mov: BentLine
    batches: tuple[int, ...]
    """Timed batch sizes, increasing."""

    def epoch_s(self, batch: int, num_train: int) -> float:
        """Time of one epoch on one rank, s: num_train / batch steps (batches may span two passes)."""
        return num_train / batch * self.step(batch)


def batch_ladder(top: int) -> tuple[list[int], list[int]]:
    """Batch sizes to fit, `top` and its halves, and to hold out, half way between them; both increasing."""
    smallest = USUAL if top >= 4 * USUAL else SMALLEST
    fitted = [top >> k for k in range(top.bit_length()) if top >> k >= smallest][::-1]
    return fitted, [(low + high) // 2 for low, high in pairwise(fitted)]


def fit_times(rows: Sequence[TimeRow], fitted: Iterable[int]) -> TimeFit:
    """Fit the lines to the medians of those batch sizes that are not held out.

    Args:
        rows: of all batch sizes.
        fitted: at least two batch sizes.
    """
    chosen = set(fitted)
    used = [row for row in rows if row.batch in chosen]
    parts = {
        "step": [(row.batch, row.t_mov_s + row.t_c_s) for row in used],
        "t_c": [(row.batch, row.t_c_s) for row in used],
        "t_mov": [(row.batch, row.t_mov_s) for row in used],
    }
    bent = {name: fit_bent_line(medians(part), standard_error(part)) for name, part in parts.items()}
    return TimeFit(**bent, batches=tuple(sorted({row.batch for row in rows})))


def best_batch(fit: TimeFit, num_train: int, max_batch: int) -> int:
    """The smallest timed batch, up to `max_batch`, whose epoch is as short as that of any (see NEAR_BEST)."""
    allowed = [batch for batch in fit.batches if batch <= max_batch] or [min(fit.batches[0], max_batch)]
    epochs = {batch: fit.epoch_s(batch, num_train) for batch in allowed}
    shortest = min(epochs.values())
    return next(batch for batch in allowed if epochs[batch] <= shortest * (1 + NEAR_BEST))
