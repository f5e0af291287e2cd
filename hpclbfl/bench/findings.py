"""The measurements of a benchmark: series of values by round, and the ratios between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from hpclbfl.bench.statistics import Ratio, describe, paired_ratio, spread

_WORDS = {
    "ms": ("faster", "slower"),
    "us": ("faster", "slower"),
    "s": ("faster", "slower"),
    "images/s": ("faster", "slower"),
    "samples/s": ("faster", "slower"),
    "MB": ("less", "more"),
    "%": ("less", "more"),
}
"""By unit: the words for a better and a worse ratio."""
_HIGHER_IS_BETTER = ("images/s", "samples/s")


@dataclass
class Series:
    """One quantity of one variant."""

    group: str
    """Series are compared within a group: a size, a net, a quantity."""
    variant: str
    title: str
    """The variant in words."""
    unit: str
    """s, ms, us, images/s, samples/s, MB, % or 1."""
    raw: list[list[float]] = field(default_factory=list)
    """[R][k] every value, by round."""

    @property
    def by_round(self) -> list[float]:
        """[R] the median of each round."""
        return [float(np.median(values)) for values in self.raw]


@dataclass(frozen=True)
class Comparison:
    """Ratio of two series of a group."""

    group: str
    variant: str
    against: str
    title: str
    ratio: Ratio
    """Above 1: the variant is better."""
    text: str


class Findings:
    """All series and ratios of one benchmark.

    Args:
        title: the benchmark in a few words.
        titles: the variants in words.
    """

    def __init__(self, title: str, titles: dict[str, str]) -> None:
        self.title = title
        self.series: list[Series] = []
        self.comparisons: list[Comparison] = []
        self.extra: dict[str, Any] = {}
        """Further results, JSON values."""
        self._titles = titles

    def add(self, group: str, variant: str, unit: str, values: Sequence[float], title: str | None = None) -> None:
        """Add one round's values to a series."""
        found = self.find(group, variant)
        if found is None:
            found = Series(group, variant, title or self._titles.get(variant, variant), unit)
            self.series.append(found)
        found.raw.append([float(value) for value in values])

    def find(self, group: str, variant: str) -> Series | None:
        """The series, if there is one."""
        return next((s for s in self.series if (s.group, s.variant) == (group, variant)), None)

    def sort(self, variants: Sequence[str]) -> None:
        """Sort the series by variant within groups; the groups keep their order."""
        groups = list(dict.fromkeys(s.group for s in self.series))
        place = {variant: k for k, variant in enumerate(variants)}
        self.series.sort(key=lambda s: (groups.index(s.group), place.get(s.variant, len(place))))

    def compare(self, group: str, variant: str, against: str) -> None:
        """Add the ratio of two series, unless one of them was not measured."""
        ours, theirs = self.find(group, variant), self.find(group, against)
        if ours is None or theirs is None:
            return
        better, worse = _WORDS[ours.unit]
        pair = (theirs.by_round, ours.by_round)
        ratio = paired_ratio(*(reversed(pair) if ours.unit in _HIGHER_IS_BETTER else pair))
        title = f"{ours.title} against {theirs.title}"
        text = describe(ratio, better, worse)
        self.comparisons.append(Comparison(group, variant, against, title, ratio, text))

    def plain(self) -> dict[str, Any]:
        """All of it as JSON values."""
        series = [{**asdict(s), "by_round": s.by_round, **asdict(spread(s.by_round))} for s in self.series]
        return {"title": self.title, "series": series, "comparisons": [asdict(c) for c in self.comparisons]}
