"""The memory of training (Eq. 3) against batch size, and the largest batch that fits.

Activation and batch memory are straight lines from the first sample on. The peak of a whole step is not: with small
batches it comes when gradients and momentum are there, with large ones while activations are, and two probes at small
batches would miss where one overtakes the other. So probes are taken as near to the limit as a step may last, a third
one tells whether they lie on a line, and no line is believed beyond twice the largest batch that was probed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hpclbfl.batching.cost_model import BentLine, Line, fit_line
from hpclbfl.core.errors import RunFailed
from hpclbfl.planner.compute import SMALLEST

MARGIN = 0.08
"""Part of the limit that the largest permissible batch leaves free, for what probes do not see."""
CLOSE = 0.02
"""A peak this near to the allowed one, relative, counts as reached: differences in memory layout are as large."""
BENT = 0.1
"""A line counts as bent if the growth between two probes, predicted from smaller ones, is wrong by more than this,
relative."""
BEYOND = 0.04
"""How far above the limit the probe aims that is meant to fail, relative."""
_REACH = 2
_TRIES = 20
_TRIES_ABOVE = 3

Measure = Callable[[int], float | None]
"""Peak memory of a step with this batch size, bytes, in a fresh process; None where it ran out of memory."""


@dataclass(frozen=True)
class Check:
    """A probe and its prediction by a line, made before it was taken, bytes."""

    batch: int
    predicted: float
    measured: float


@dataclass
class PeakProbes:
    """Probes of one device, each batch size once.

    Args:
        measure: takes a probe.
        limit_bytes: what there is; a probe that takes more has failed.
    """

    measure: Measure
    limit_bytes: float
    points: dict[int, float] = field(default_factory=dict)
    """Peak, bytes, by batch size."""
    failed: set[int] = field(default_factory=set)
    """Batch sizes that ran out of memory."""

    def fits(self, batch: int) -> bool:
        """Probe a batch size, unless that was done, and tell whether it stays within the limit."""
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
    """memory; data: the training set has no more; time: a larger step takes too long to be tried."""
    peak: BentLine
    """Peak memory, bytes."""
    checks: tuple[Check, ...]
    above: int | None = None
    """The batch beyond the limit that was tried last; None where memory is not the bound."""
    above_failed: bool = False

    @property
    def is_verified(self) -> bool:
        """Whether it ran, and, if memory is the bound, the next probe did not."""
        return self.bound != "memory" or self.above_failed


def fit_peak(probes: PeakProbes, top: int, most: int) -> BentLine:
    """A line through three probes, at a quarter and half of `top` and there; further up while they lie on none.

    Args:
        top: where to begin.
        most: largest batch size to probe.

    Raises:
        RunFailed: not even small batches fit.
    """
    top = max(SMALLEST, min(max(top, 4 * SMALLEST), most))
    while True:
        sizes = sorted({max(SMALLEST, top // 4), max(SMALLEST, top // 2), top})
        # Once something has not fitted, the largest comes first: if it does not fit, either, two probes are saved.
        order = sizes if probes.bound is None else sizes[::-1]
        if not all(probes.fits(size) for size in order):
            bound = probes.bound or SMALLEST
            if bound <= SMALLEST:
                raise RunFailed(f"memory: not even a batch of {SMALLEST} fits into the limit")
            # Not up to the limit itself, which is left to the search.
            most = top = max(SMALLEST, min(most, int(0.8 * bound)))
            continue
        points = {size: probes.points[size] for size in sizes}
        if len(sizes) < 3 or is_straight(points):
            return BentLine(_line(points), sizes[0])
        if top >= most:
            return _upper_line(probes)
        top = min(most, 2 * top)


def is_straight(points: dict[int, float]) -> bool:
    """Whether the largest of three probes lies on the line through the two others."""
    small, middle, large = sorted(points)
    predicted = _through(small, points[small], middle, points[middle])(large)
    growth = points[large] - points[middle]
    return abs(predicted - points[large]) <= max(BENT * abs(growth), CLOSE / 2 * points[large])


def find_largest(probes: PeakProbes, peak: BentLine, most: int, most_is: str) -> Permissible:
    """Run the largest batch within the limit and its margin, then one beyond the limit; correct the line on the way.

    Args:
        peak: as fitted.
        most: largest batch size to try.
        most_is: what bounds that: data or time.
    """
    allowed = probes.limit_bytes * (1 - MARGIN)
    checks: list[Check] = []
    for _ in range(_TRIES):
        wanted = _aim(probes, peak.line, allowed, most)
        if wanted in probes.points:
            break
        predicted = peak(wanted)
        if probes.fits(wanted):
            measured = probes.points[wanted]
            checks.append(Check(wanted, predicted, measured))
            # A probe above what is allowed must move the line, or the next aim would be the same.
            if abs(predicted - measured) > CLOSE * measured or measured > allowed * (1 + CLOSE):
                peak = _upper_line(probes)
            if abs(measured / allowed - 1) <= CLOSE:
                break
    best = max((b for b, size in probes.points.items() if size <= allowed * (1 + CLOSE)), default=min(probes.points))
    if best >= most:
        return Permissible(best, most_is, peak, tuple(checks))
    above, above_failed = _run_into_limit(probes, peak.line, best)
    return Permissible(best, "memory", peak, tuple(checks), above, above_failed)


def _aim(probes: PeakProbes, line: Line, allowed: float, most: int) -> int:
    """The batch to try next."""
    wanted = min(line.batch_of(allowed) if line.per_sample > 0 else most, _REACH * probes.largest, most)
    if probes.bound is not None and wanted >= probes.bound:
        # The line is wrong up there: somewhere between what fitted and what did not.
        wanted = probes.largest + int(0.7 * (probes.bound - probes.largest))
    return max(SMALLEST, wanted)


def _run_into_limit(probes: PeakProbes, line: Line, best: int) -> tuple[int, bool]:
    """Try batches above the limit until one fails; the last one, and whether it did."""
    above = best
    for attempt in range(_TRIES_ABOVE):
        aim = line.batch_of(probes.limit_bytes * (1 + (attempt + 1) * BEYOND)) if line.per_sample > 0 else 2 * best
        above = max(aim, above) + 1
        if not probes.fits(above):
            return above, True
    return above, False


def _upper_line(probes: PeakProbes) -> BentLine:
    """The line through the largest probes: at least two, from half of the largest batch on."""
    batches = sorted(probes.points)
    upper = [batch for batch in batches if batch >= batches[-1] / 2] if len(batches) > 2 else batches
    upper = upper if len(upper) > 1 else batches[-2:]
    return BentLine(_line({batch: probes.points[batch] for batch in upper}), upper[0])


def _line(points: dict[int, float]) -> Line:
    return fit_line(points) if len(points) > 1 else Line(next(iter(points.values())), 0.0)


def _through(x0: float, y0: float, x1: float, y1: float) -> Line:
    slope = (y1 - y0) / (x1 - x0)
    return Line(y0 - slope * x0, slope)
