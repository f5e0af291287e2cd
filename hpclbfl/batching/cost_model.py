"""Linear cost models: a quantity as a function of the batch size, and the batch size from which on it is linear.

S. Tyagi, "On Using Large-Batches in Federated Learning", section III-A: activation and batch memory and compute time
are proportional to the batch size. This does not hold for small batches, which leave a device partly idle and whose
memory does not peak at the activations. So a line is fitted to the largest batches that lie on one, and the batch size
from which on it holds is part of the result.

The parts of a line are constrained to be non-negative, because a free fit to measurements that curve upwards would
predict negative times for small batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

ENDLESS = 2**31
"""Larger than any batch, samples."""
STRAIGHT = 0.03
"""Largest relative error of a line at the measurements that it explains."""


@dataclass(frozen=True)
class Line:
    """value = fixed + per_sample * batch."""

    fixed: float
    per_sample: float

    def __call__(self, batch: float) -> float:
        """Value at a batch size."""
        return self.fixed + self.per_sample * batch

    def batch_of(self, value: float) -> int:
        """Largest batch size at which the line does not exceed a value; ENDLESS if the line does not rise."""
        if self.per_sample <= 0:
            return ENDLESS if self.fixed <= value else 0
        # The factor allows for rounding errors of a fitted line.
        return max(0, int(np.floor((value - self.fixed) / self.per_sample * (1 + 1e-9))))


@dataclass(frozen=True)
class BentLine:
    """A line from `straight_from` on, and linear interpolation between measurements below."""

    line: Line
    straight_from: int
    below: tuple[tuple[int, float], ...] = ()
    """Batch sizes and values, in ascending order."""

    def __call__(self, batch: float) -> float:
        """Value at a batch size."""
        if batch >= self.straight_from or not self.below:
            return max(0.0, self.line(batch))
        batches, values = zip(*self.below, strict=True)
        knots = [*batches, self.straight_from], [*values, self.line(self.straight_from)]
        # The first piece is extended below the smallest measurement, down to 0.
        if batch < batches[0]:
            slope = (knots[1][1] - knots[1][0]) / (knots[0][1] - knots[0][0])
            return float(max(0.0, knots[1][0] - max(0.0, slope) * (knots[0][0] - batch)))
        return float(np.interp(batch, *knots))


def medians(rows: Iterable[tuple[int, float]]) -> dict[int, float]:
    """Median of the values at each batch size, in ascending order of batch sizes."""
    return {batch: float(np.median(values)) for batch, values in sorted(_by_batch(rows).items())}


def _by_batch(rows: Iterable[tuple[int, float]]) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for batch, value in rows:
        found.setdefault(batch, []).append(value)
    return found


def fit_line(points: Mapping[int, float]) -> Line:
    """Least-squares fit of relative errors, so that small batches count as much as large ones; both parts at least 0.

    Args:
        points: positive values at one or more batch sizes; a single one is taken as proportional to its batch.
    """
    batches = np.array(list(points), dtype=np.float64)
    inverse = 1.0 / np.array(list(points.values()), dtype=np.float64)
    design = np.stack([inverse, batches * inverse], axis=1)
    (fixed, per_sample), *_ = np.linalg.lstsq(design, np.ones(len(batches)), rcond=None)
    # Non-negative least squares with two unknowns: a negative one becomes 0, and the other is fitted alone.
    if per_sample < 0:
        fixed, per_sample = inverse.sum() / (inverse**2).sum(), 0.0
    elif fixed < 0 or len(batches) == 1:
        ratios = batches * inverse
        fixed, per_sample = 0.0, ratios.sum() / (ratios**2).sum()
    return Line(float(fixed), float(per_sample))


def plain_line(points: Mapping[int, float]) -> Line:
    """Ordinary least squares over all points, as in the paper's Fig. 4b and 5; both parts may be negative.

    Args:
        points: values at two or more batch sizes.
    """
    per_sample, fixed = np.polyfit(list(points), list(points.values()), 1)
    return Line(float(fixed), float(per_sample))


def fit_bent_line(points: Mapping[int, float], noise: float = 0.0) -> BentLine:
    """A line through the largest batches that lie on one, and the measurements below them.

    If not even the two largest lie on one, because the value grows faster than the batch or falls, the line starts at
    the largest batch and is proportional, or constant.

    Args:
        points: positive values at two or more batch sizes.
        noise: relative standard error of a value; deviations up to twice this are tolerated.
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
    """Relative standard error of the median of repetitions, median over batch sizes; 0 without repetitions."""
    found = []
    for values in _by_batch(rows).values():
        middle = float(np.median(values))
        # 1.4826 times the median absolute deviation estimates the standard deviation of normal values, and 1.2533 is
        # the ratio of the standard errors of a median and a mean.
        spread = 1.4826 * float(np.median(np.abs(np.array(values) - middle)))
        found.append(1.2533 * spread / middle / len(values) ** 0.5 if len(values) > 1 and middle > 0 else 0.0)
    return float(np.median(found)) if found else 0.0
