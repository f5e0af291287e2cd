"""Food-101 (Bossard et al. 2014), as torchvision has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpclbfl.config.components import DATASETS
from hpclbfl.data.datasets import Dataset
from hpclbfl.data.fetched import FetchedConfig
from hpclbfl.data.splits import FileImages, Split


class Food101Config(FetchedConfig):
    """See the module."""

    def open(self, sets: Any, root: Path, download: bool) -> tuple[Any, ...]:
        """See `FetchedConfig`."""
        return tuple(sets.Food101(root, split, download=download) for split in ("train", "test"))


@DATASETS.register("food101", Food101Config)
def food101(config: Food101Config) -> Dataset:
    """See the module."""
    train, test = config.opened()
    return Dataset(
        config.name,
        tuple(train.classes),
        Split.of(FileImages(train._image_files), train._labels),
        Split.of(FileImages(test._image_files), test._labels),
    )
