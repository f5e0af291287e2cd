"""A job's data set: opened by its name, and cut to `data.limit`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from hpclbfl.config.components import DATASETS
from hpclbfl.config.sections import DataConfig, ImageDataConfig
from hpclbfl.core.errors import DataError
from hpclbfl.data.packed import IntArray
from hpclbfl.data.samples import Samples


@dataclass(frozen=True)
class Dataset:
    """A training and a test split with the names of their classes."""

    name: str
    classes: tuple[str, ...]
    """Empty: samples have no classes."""
    train: Samples
    test: Samples
    whole: Dataset | None = None
    """The set before `data.limit` cut it; None: this one is whole."""
    note: str = ""
    """A remark to print: files that were left out."""

    @cached_property
    def fingerprint(self) -> str:
        """Names the whole set by its content: a folder of images and its packed file are the same."""
        if self.whole is not None:
            return self.whole.fingerprint
        return self.train.fingerprint(self.classes, {"train": self.train, "test": self.test})

    @property
    def num_classes(self) -> int:
        """K: labels are below it."""
        labels = self.train.labels
        return len(self.classes) or (0 if labels is None else int(labels.max()) + 1)


def load_dataset(config: DataConfig, is_downloader: bool = True, wait: Callable[[], None] = lambda: None) -> Dataset:
    """Open the set that a job's `data` section names.

    Args:
        config: the section.
        is_downloader: whether this process downloads (`download: true`); one per node does.
        wait: a barrier over all processes, called once where `download: true` is set.

    Raises:
        ConfigError: a path that is missing.
        DataError: the set is missing, damaged, or not what it should be.
    """
    if config.downloads:
        if is_downloader:
            config.download_now()
        wait()
    made = DATASETS.make(config)
    if isinstance(made, Dataset):
        dataset = made
    else:
        from hpclbfl.data.own_set import read_own

        dataset = Dataset(config.title, *read_own(made, config))
    for split_name, split in (("train", dataset.train), ("test", dataset.test)):
        if len(split) == 0:
            needed = "images" if isinstance(config, ImageDataConfig) else "samples"
            raise DataError(f"{config.place}: the {split_name} split is empty, it needs {needed}")
    return dataset if config.limit is None else limited(dataset, config.limit)


def limited(dataset: Dataset, limit: int) -> Dataset:
    """Keep `limit` training samples, the first of each class, evenly over the classes; the test split in proportion.

    Where samples have no classes, their groups are in the place of these; where they have neither, the first are kept.
    """
    count = len(dataset.train)
    if limit >= count:
        return dataset
    num_test = max(1, round(len(dataset.test) * limit / count))
    return replace(
        dataset,
        train=dataset.train.subset(_first_evenly(_kinds(dataset.train), limit)),
        test=dataset.test.subset(_first_evenly(_kinds(dataset.test), num_test)),
        whole=dataset,
    )


def _kinds(split: Samples) -> IntArray:
    kinds = split.labels if split.labels is not None else split.groups
    return np.zeros(len(split), np.int64) if kinds is None else kinds


def _first_evenly(labels: IntArray, count: int) -> IntArray:
    rank_in_class = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank_in_class[members] = np.arange(len(members))
    # Every class's first image, then every class's second, and so on until there are enough.
    return np.sort(np.lexsort((labels, rank_in_class))[:count])
