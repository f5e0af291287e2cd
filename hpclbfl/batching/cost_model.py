"""Straight lines through measurements, and from which batch size on they are straight.

S. Tyagi, "On Using Large-Batches in Federated Learning", section III-A: activation and batch memory and compute time
are proportional to the batch size. Not everywhere: small batches leave a device idle, and the moment of a step at
which memory peaks moves from the parameters to the activations. So a line is fitted to the largest batches that lie on
one, and where it begins to hold is part of the answer.

Neither part of a line is ever below 0: no step takes less than no time, whatever a free fit makes of measurements that
bend upwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

ENDLESS = 2**31
"""More samples than any batch has."""
STRAIGHT = 0.03
"""Largest relative distance from a line of measurements that lie on it."""


@dataclass(frozen=True)
class Line:
    """value = fixed + per_sample * batch."""

    fixed: float
    per_sample: float

    def __call__(self, batch: float) -> float:
        """Value at a batch size."""
        return self.fixed + self.per_sample * batch

    def batch_of(self, value: float) -> int:
        """Largest whole batch size at which the line does not exceed a value; ENDLESS where it does not rise."""
        if self.per_sample <= 0:
            return ENDLESS if self.fixed <= value else 0
        # A line that was fitted meets a whole number to rounding alone.
        return max(0, int(np.floor((value - self.fixed) / self.per_sample * (1 + 1e-9))))


@dataclass(frozen=True)
class BentLine:
    """A line from `straight_from` on, and straight pieces between measurements below."""

    line: Line
    straight_from: int
    below: tuple[tuple[int, float], ...] = ()
    """Batch sizes and values, rising in batch size."""

    def __call__(self, batch: float) -> float:
        """Value at a batch size."""
        if batch >= self.straight_from or not self.below:
            return max(0.0, self.line(batch))
        batches, values = zip(*self.below, strict=True)
        knots = [*batches, self.straight_from], [*values, self.line(self.straight_from)]
        # Below the smallest measurement, the first piece goes on; no value is less than nothing.
        if batch < batches[0]:
            slope = (knots[1][1] - knots[1][0]) / (knots[0][1] - knots[0][0])
            return float(max(0.0, knots[1][0] - max(0.0, slope) * (knots[0][0] - batch)))
        return float(np.interp(batch, *knots))


def medians(rows: Iterable[tuple[int, float]]) -> dict[int, float]:
    """Median of the values of each batch size, rising in batch size."""
    gathered: dict[int, list[float]] = {}
    for batch, value in rows:
        gathered.setdefault(batch, []).append(value)
    return {batch: float(np.median(gathered[batch])) for batch in sorted(gathered)}


def fit_line(points: Mapping[int, float]) -> Line:
    """Least squares of relative errors with both parts at least 0, so that small batches count like large ones.

    Args:
        points: positive value of each of at least one batch size; one alone is taken as proportional to its batch.
    """
    batches = np.array(list(points), dtype=np.float64)
    inverse = 1.0 / np.array(list(points.values()), dtype=np.float64)
    design = np.stack([inverse, batches * inverse], axis=1)
    (fixed, per_sample), *_ = np.linalg.lstsq(design, np.ones(len(batches)), rcond=None)
    # With two unknowns, where one of them would be negative it is 0, and the other has the least sum of squares alone.
    if per_sample < 0:
        fixed, per_sample = inverse.sum() / (inverse**2).sum(), 0.0
    elif fixed < 0 or len(batches) == 1:
        ratios = batches * inverse
        fixed, per_sample = 0.0, ratios.sum() / (ratios**2).sum()
    return Line(float(fixed), float(per_sample))


def plain_line(points: Mapping[int, float]) -> Line:
    """Ordinary least squares over all points, as in the paper's Fig. 4b and 5; may fall, and below zero.

    Args:
        points: value of each of at least two batch sizes.
    """
    per_sample, fixed = np.polyfit(list(points), list(points.values()), 1)
    return Line(float(fixed), float(per_sample))


def fit_bent_line(points: Mapping[int, float], noise: float = 0.0) -> BentLine:
    """A line through the largest batches that lie on one, and what was measured below it.

    Where not even the two largest do, as the value grows faster than the batch or falls, the line begins at the largest
    batch: it is proportional from there on, or flat.

    Args:
        points: positive value of each of at least two batch sizes.
        noise: relative standard error of a value; twice as much is no bend.
    """
    batches = sorted(points)
    tolerance = max(STRAIGHT, 2 * noise)
    for begin in range(len(batches) - 1):
        rest = {batch: points[batch] for batch in batches[begin:]}
        line = fit_line(rest)
        if max(errors(line, rest)) <= tolerance:
            break
    else:
        begin = len(batches) - 1
        before, last = points[batches[-2]], points[batches[-1]]
        line = Line(0.0, last / batches[-1]) if last > before else Line(last, 0.0)
    return BentLine(line, batches[begin], tuple((batch, points[batch]) for batch in batches[:begin]))


def errors(predict: Callable[[int], float], points: Mapping[int, float]) -> list[float]:
    """Relative error of the prediction at each batch size: |predicted - measured| / measured."""
    return [abs(predict(batch) - value) / value for batch, value in points.items()]


def standard_error(rows: Sequence[tuple[int, float]]) -> float:
    """Relative standard error of the medians of repetitions, median over batch sizes; 0 without repetitions."""
    gathered: dict[int, list[float]] = {}
    for batch, value in rows:
        gathered.setdefault(batch, []).append(value)
    found = []
    for values in gathered.values():
        middle = float(np.median(values))
        spread = 1.4826 * float(np.median(np.abs(np.array(values) - middle)))
        # 1.2533: standard error of a median over that of a mean.
        found.append(1.2533 * spread / middle / len(values) ** 0.5 if len(values) > 1 and middle > 0 else 0.0)
    return float(np.median(found)) if found else 0.0
