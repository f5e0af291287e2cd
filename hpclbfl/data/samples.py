"""A split, whatever its samples are: what partitions, samplers and loaders ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from hpclbfl.data.packed import IntArray


class Samples(Protocol):
    """Samples by their places, from 0."""

    @property
    def labels(self) -> IntArray | None:
        """Class of each sample, int64 [N]; None: they have none."""

    @property
    def groups(self) -> IntArray | None:
        """Whose each sample is, int64 [N]; None: nobody's."""

    def __len__(self) -> int: ...

    def subset(self, indices: IntArray) -> Samples:
        """The samples at these places, in this order."""

    @staticmethod
    def fingerprint(classes: tuple[str, ...], splits: Mapping[str, Any]) -> str:
        """What names the content of splits of this kind, by name, 64 hexadecimal digits."""
