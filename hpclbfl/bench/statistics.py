"""Medians with quartiles, and ratios of two series that were measured in turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
_SEED = 0


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    lower_quartile: float
    upper_quartile: float


@dataclass(frozen=True)
class Ratio:
    """A ratio and its 95 % interval."""

    value: float
    low: float
    high: float
    num_rounds: int

    @property
    def inverse(self) -> Ratio:
        """Denominator over numerator."""
        return Ratio(1 / self.value, 1 / self.high, 1 / self.low, self.num_rounds)

    @property
    def is_significant(self) -> bool:
        """Whether the interval excludes 1."""
        return self.low > 1 or self.high < 1


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of at least one value."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return Spread(middle, low, high)


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Median over rounds of numerator / denominator, with its percentile bootstrap interval over rounds.

    B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. Whole rounds are resampled, so a
    slowdown of both sides of a round does not widen the interval. The interval of one round is the ratio itself.

    Args:
        numerators, denominators: a value above 0 per round, [R].

    Raises:
        ValueError: no round, or not as many values on both sides.
    """
    if not numerators or len(numerators) != len(denominators):
        raise ValueError(f"pairs are needed, not {len(numerators)} and {len(denominators)} values")
    ratios = np.asarray(numerators, dtype=np.float64) / np.asarray(denominators, dtype=np.float64)
    # A fixed seed: the interval depends on the measurements alone.
    draws = np.random.Generator(np.random.PCG64(_SEED)).integers(0, len(ratios), (RESAMPLES, len(ratios)))
    medians = np.median(ratios[draws], axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(medians, (tail, 1 - tail)).tolist()
    return Ratio(float(np.median(ratios)), low, high, len(ratios))


def describe(ratio: Ratio, better: str = "faster", worse: str = "slower") -> str:
    """In words: `2.9x faster (2.7 to 3.1)`; above 1 is better. Says so where the interval includes 1 or is missing."""
    word = better
    if ratio.value < 1:
        ratio, word = ratio.inverse, worse
    text = f"{_shown(ratio.value)}x {word}"
    if ratio.num_rounds == 1:
        return f"{text} (one round, no interval)"
    text += f" ({_shown(ratio.low)} to {_shown(ratio.high)})"
    return text if ratio.is_significant else f"{text}, not significant"


def _shown(number: float) -> str:
    """Three digits: 0.97, 1.03, 2.9, 44.2, 3853."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"
