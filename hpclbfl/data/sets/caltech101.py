"""Caltech-101 (Fei-Fei et al. 2004), as torchvision has it; 80 % of each class are for training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hpclbfl.config.components import DATASETS
from hpclbfl.data.datasets import Dataset
from hpclbfl.data.fetched import FetchedConfig
from hpclbfl.data.splits import FileImages, Split

_TEST_SHARE = 0.2


class Caltech101Config(FetchedConfig):
    """See the module."""

    def open(self, sets: Any, root: Path, download: bool) -> tuple[Any, ...]:
        """See `FetchedConfig`."""
        return (sets.Caltech101(root, download=download),)


@DATASETS.register("caltech101", Caltech101Config)
def caltech101(config: Caltech101Config) -> Dataset:
    """See the module."""
    (full,) = config.opened()
    folder = Path(full.root) / "101_ObjectCategories"
    labels = np.asarray(full.y, dtype=np.int64)
    files = [
        folder / full.categories[label] / f"image_{number:04d}.jpg"
        for label, number in zip(full.y, full.index, strict=True)
    ]
    # The set has no official split; this one is the same for every seed, so that all runs share a test set.
    rng = np.random.Generator(np.random.Philox(101))
    in_test = np.zeros(len(labels), dtype=bool)
    for label in range(len(full.categories)):
        members = rng.permutation(np.flatnonzero(labels == label))
        in_test[members[: round(_TEST_SHARE * len(members))]] = True
    split = Split.of(FileImages(files), labels)
    train, test = split.subset(np.flatnonzero(~in_test)), split.subset(np.flatnonzero(in_test))
    return Dataset(config.name, tuple(full.categories), train, test)
