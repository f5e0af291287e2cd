"""The memory of training (Eq. 3) by batch size, and the largest batch that fits.

Activation and batch memory are linear in the batch size. The peak of a whole step is only piecewise linear: with small
batches it occurs when gradients and momentum are allocated, with large ones while activations are, and two probes at
small batches would miss the crossover. So probes are taken as close to the limit as a step's time allows, a third one
checks linearity, and no line is extrapolated beyond twice the largest batch that was probed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hpclbfl.batching.cost_model import BentLine, Line, fit_line
from hpclbfl.core.errors import RunFailed
from hpclbfl.planner.compute import SMALLEST

MARGIN = 0.08
"""Part of the limit that the largest permissible batch leaves free, for memory that probes do not measure."""
CLOSE = 0.02
"""Relative distance at which a peak counts as equal to the allowed one; memory layouts differ by as much."""
BENT = 0.1
"""Largest relative error of the growth between two probes, predicted from smaller ones, on a straight line."""
BEYOND = 0.04
"""Relative distance above the limit of the probe that is meant to fail."""
_REACH = 2
_TRIES = 20
_TRIES_ABOVE = 3

Measure = Callable[[int], float | None]
"""Peak memory of a step with this batch size, bytes, in a fresh process; None where it ran out of memory."""


@dataclass
class PeakProbes:
    """Probes of one device, each batch size at most once.

    Args:
        measure: runs a probe.
        limit_bytes: available memory; a probe that takes more has failed.
    """

    measure: Measure
    limit_bytes: float
    points: dict[int, float] = field(default_factory=dict)
    """Peak, bytes, by batch size."""
    failed: set[int] = field(default_factory=set)
    """Batch sizes that ran out of memory."""

    def fits(self, batch: int) -> bool:
        """Whether a batch size stays within the limit; probes it unless that was done before."""
        if batch not in self.points and batch not in self.failed:
            peak = self.measure(batch)
            if peak is None or peak > self.limit_bytes:
                self.failed.add(batch)
            else:
                self.points[batch] = peak
        return batch in self.points

    @property
    def largest(self) -> int:
        """Largest batch size that fitted; 0 if none did."""
        return max(self.points, default=0)

    @property
    def bound(self) -> int | None:
        """Smallest batch size that did not fit."""
        return min(self.failed, default=None)


@dataclass(frozen=True)
class Permissible:
    """The largest batch that a device can train, and how that was verified."""

    max_batch: int
    bound: str
    """memory; data: the training set is no larger; time: a larger step takes too long."""
    is_verified: bool
    """It was run, and where memory is the bound, a batch slightly above the limit failed."""
    peak: BentLine
    """Peak memory, bytes."""
    predictions: dict[int, float]
    """Peak, bytes, by batch size, as predicted before the probe."""
    failed_batch: int | None = None
    """Smallest batch that ran out of memory; None: none did."""


def fit_peak(probes: PeakProbes, top: int, most: int) -> BentLine:
    """Fit a line to three probes, at a quarter, a half and all of `top`; doubles `top` while they lie on no line.

    Args:
        top: first batch size.
        most: largest batch size to probe.

    Raises:
        RunFailed: not even small batches fit.
    """
    top = max(SMALLEST, min(max(top, 4 * SMALLEST), most))
    while True:
        sizes = sorted({max(SMALLEST, top // 4), max(SMALLEST, top // 2), top})
        # After a failure the largest comes first: two probes are saved if it fails, too.
        order = sizes if probes.bound is None else sizes[::-1]
        if not all(probes.fits(size) for size in order):
            bound = probes.bound or SMALLEST
            if bound <= SMALLEST:
                raise RunFailed(f"memory: not even a batch of {SMALLEST} fits into the limit")
            # The search, not this fit, approaches the limit.
            most = top = max(SMALLEST, min(most, int(0.8 * bound)))
            continue
        points = {size: probes.points[size] for size in sizes}
        if len(sizes) < 3 or is_straight(points):
            return BentLine(_line(points), sizes[0])
        if top >= most:
            return _upper_line(probes)
        top = min(most, 2 * top)


def is_straight(points: dict[int, float]) -> bool:
    """Whether the largest of three probes lies on the line through the other two."""
    (x0, y0), (x1, y1), (x2, y2) = sorted(points.items())
    error = abs(y1 + (y1 - y0) / (x1 - x0) * (x2 - x1) - y2)
    return error <= max(BENT * abs(y2 - y1), CLOSE / 2 * y2)


def find_largest(probes: PeakProbes, peak: BentLine, most: int, most_is: str) -> Permissible:
    """Run the largest batch within the limit and its margin, then one beyond the limit, refitting the line as needed.

    Args:
        peak: as fitted.
        most: largest batch size to try.
        most_is: the reason for `most`: data or time.
    """
    allowed = probes.limit_bytes * (1 - MARGIN)
    predictions: dict[int, float] = {}
    for _ in range(_TRIES):
        wanted = _next_batch(probes, peak.line, allowed, most)
        if wanted in probes.points:
            break
        predicted = peak(wanted)
        if probes.fits(wanted):
            measured = probes.points[wanted]
            predictions[wanted] = predicted
            # A probe above the allowed peak must change the line, or the next one would be the same.
            if abs(predicted - measured) > CLOSE * measured or measured > allowed * (1 + CLOSE):
                peak = _upper_line(probes)
            if abs(measured / allowed - 1) <= CLOSE:
                break
    best = max((b for b, size in probes.points.items() if size <= allowed * (1 + CLOSE)), default=min(probes.points))
    if best >= most:
        return Permissible(best, most_is, True, peak, predictions, probes.bound)
    return Permissible(best, "memory", _fails_above(probes, peak.line, best), peak, predictions, probes.bound)


def _next_batch(probes: PeakProbes, line: Line, allowed: float, most: int) -> int:
    wanted = min(line.batch_of(allowed) if line.per_sample > 0 else most, _REACH * probes.largest, most)
    if probes.bound is not None and wanted >= probes.bound:
        # The line is wrong there: the answer lies between the largest that fitted and the smallest that did not.
        wanted = probes.largest + int(0.7 * (probes.bound - probes.largest))
    return max(SMALLEST, wanted)


def _fails_above(probes: PeakProbes, line: Line, best: int) -> bool:
    """Try batches above the limit, each further than the last, and tell whether one failed."""
    above = best
    for attempt in range(1, _TRIES_ABOVE + 1):
        aim = line.batch_of(probes.limit_bytes * (1 + attempt * BEYOND)) if line.per_sample > 0 else 2 * best
        above = max(aim, above) + 1
        if not probes.fits(above):
            return True
    return False


def _upper_line(probes: PeakProbes) -> BentLine:
    """Fit a line to the probes from half of the largest batch on, at least two."""
    batches = sorted(probes.points)
    upper = [batch for batch in batches if batch >= batches[-1] / 2] if len(batches) > 2 else batches
    upper = upper if len(upper) > 1 else batches[-2:]
    return BentLine(_line({batch: probes.points[batch] for batch in upper}), upper[0])


def _line(points: dict[int, float]) -> Line:
    return fit_line(points) if len(points) > 1 else Line(next(iter(points.values())), 0.0)
