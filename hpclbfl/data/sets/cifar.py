"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), as torchvision has them: 32x32 px."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpclbfl.config.components import DATASETS
from hpclbfl.data.datasets import Dataset
from hpclbfl.data.fetched import FetchedConfig
from hpclbfl.data.splits import ArrayImages, Split


class CifarConfig(FetchedConfig):
    """See the module."""

    def open(self, sets: Any, root: Path, download: bool) -> tuple[Any, ...]:
        """See `FetchedConfig`."""
        found = sets.CIFAR10 if self.name == "cifar10" else sets.CIFAR100
        return tuple(found(root, train, download=download) for train in (True, False))


@DATASETS.register("cifar10", CifarConfig)
@DATASETS.register("cifar100", CifarConfig)
def cifar(config: CifarConfig) -> Dataset:
    """See the module."""
    train, test = config.opened()
    where = f"{config.name} in {config.path}"
    return Dataset(
        config.name,
        tuple(train.classes),
        Split.of(ArrayImages(train.data, f"{where}, train"), train.targets),
        Split.of(ArrayImages(test.data, f"{where}, test"), test.targets),
    )
