"""Image sets by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hpclbfl.config.sections import DataConfig
from hpclbfl.core.errors import ConfigError, DataError
from hpclbfl.data.imagefolder import left_out_line, scan_both
from hpclbfl.data.packed import IntArray, PackedFile, fingerprint
from hpclbfl.data.splits import ArrayImages, FileImages, PackedImages, Split

DIGITS = Path(__file__).with_name("digits.h5")

_CALTECH101_TEST_SHARE = 0.2


@dataclass(frozen=True)
class Dataset:
    """A training and a test split with the names of their classes."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    whole: Dataset | None = None
    """The set before `data.limit` cut it; None: this one is whole."""
    note: str = ""
    """A remark to print: files that were left out."""

    @cached_property
    def fingerprint(self) -> str:
        """Names the whole set by its content (see packed.fingerprint): a folder and its packed file are the same."""
        if self.whole is not None:
            return self.whole.fingerprint
        return fingerprint(self.classes, {"train": self.train, "test": self.test})

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)


def load_dataset(config: DataConfig, is_downloader: bool = True, wait: Callable[[], None] = lambda: None) -> Dataset:
    """Open the set that a job's `data` section names.

    Args:
        config: the section.
        is_downloader: whether this process downloads (`download: true`); one per node does.
        wait: a barrier over all processes, called once where `download: true` is set.

    Raises:
        ConfigError: an unknown name, or a path that is missing.
        DataError: the set is missing, damaged, or not what it should be.
    """
    if config.name not in _LOADERS:
        raise ConfigError(f"data.name: unknown set '{config.name}': known are {', '.join(sorted(_LOADERS))}")
    if config.name != "digits" and config.path is None:
        raise ConfigError(f"data.path: missing: '{config.name}' needs {_path_meaning(config.name)}")
    if config.download:
        if config.name in _TORCHVISION_NAMES and is_downloader:
            _open_torchvision(config, download=True)
        wait()
    dataset = _LOADERS[config.name](config)
    for split_name, split in (("train", dataset.train), ("test", dataset.test)):
        if len(split) == 0:
            raise DataError(f"{config.path or config.name}: the {split_name} split is empty, it needs images")
    return dataset if config.limit is None else limited(dataset, config.limit)


def limited(dataset: Dataset, limit: int) -> Dataset:
    """Keep `limit` training images, the first of each class, evenly over the classes; the test split in proportion."""
    count = len(dataset.train)
    if limit >= count:
        return dataset
    num_test = max(1, round(len(dataset.test) * limit / count))
    return replace(
        dataset,
        train=dataset.train.subset(_first_evenly(dataset.train.labels, limit)),
        test=dataset.test.subset(_first_evenly(dataset.test.labels, num_test)),
        whole=dataset,
    )


def _first_evenly(labels: IntArray, count: int) -> IntArray:
    rank_in_class = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank_in_class[members] = np.arange(len(members))
    # Every class's first image, then every class's second, and so on until there are enough.
    return np.sort(np.lexsort((labels, rank_in_class))[:count])


def _path_meaning(name: str) -> str:
    if name == "packed":
        return "a packed file"
    if name == "imagefolder":
        return "a folder that holds train/ and test/"
    return "the folder that holds the set, or where it is to be downloaded"


def _digits(config: DataConfig) -> Dataset:
    return open_packed("digits", DIGITS)


def _packed(config: DataConfig) -> Dataset:
    return open_packed("packed", Path(config.path or ""))


def open_packed(name: str, path: Path) -> Dataset:
    """A packed file as a set; the file stays open for as long as its splits are in use."""
    file = PackedFile(path)
    try:
        missing = [split for split in ("train", "test") if split not in file.splits]
        if missing:
            raise DataError(f"{path}: has no split {' and no '.join(missing)}: a packed set needs train and test")
        splits = {key: Split.of(PackedImages(split), split.labels) for key, split in file.splits.items()}
        dataset = Dataset(name, file.classes, splits["train"], splits["test"])
        if file.noted is not None:
            # The set then knows its fingerprint; the file's own also covers further splits.
            file.check(dataset.fingerprint if len(splits) == 2 else file.fingerprint())
    except DataError:
        file.close()
        raise
    return dataset


def _cifar(config: DataConfig) -> Dataset:
    train, test = _open_torchvision(config)
    where = f"{config.name} in {config.path}"
    return Dataset(
        config.name,
        tuple(train.classes),
        Split.of(ArrayImages(train.data, f"{where}, train"), train.targets),
        Split.of(ArrayImages(test.data, f"{where}, test"), test.targets),
    )


def _food101(config: DataConfig) -> Dataset:
    train, test = _open_torchvision(config)
    return Dataset(
        config.name,
        tuple(train.classes),
        Split.of(FileImages(train._image_files), train._labels),
        Split.of(FileImages(test._image_files), test._labels),
    )


def _caltech101(config: DataConfig) -> Dataset:
    (full,) = _open_torchvision(config)
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
        in_test[members[: round(_CALTECH101_TEST_SHARE * len(members))]] = True
    split = Split.of(FileImages(files), labels)
    train, test = split.subset(np.flatnonzero(~in_test)), split.subset(np.flatnonzero(in_test))
    return Dataset(config.name, tuple(full.categories), train, test)


def _open_torchvision(config: DataConfig, download: bool = False) -> tuple[Any, ...]:
    from hpclbfl.core.vision import torchvision

    root, sets = Path(config.path or ""), torchvision.datasets
    kinds: Mapping[str, Callable[[], tuple[Any, ...]]] = {
        "cifar10": lambda: tuple(sets.CIFAR10(root, train, download=download) for train in (True, False)),
        "cifar100": lambda: tuple(sets.CIFAR100(root, train, download=download) for train in (True, False)),
        "food101": lambda: tuple(sets.Food101(root, split, download=download) for split in ("train", "test")),
        "caltech101": lambda: (sets.Caltech101(root, download=download),),
    }
    if not root.is_dir() and not download:
        raise DataError(f"{root}: no such folder: set data.download: true to fetch {config.name} into it")
    try:
        return kinds[config.name]()
    except (RuntimeError, OSError, ValueError, KeyError, EOFError) as error:
        # torchvision checks presence and checksums, but its errors say little.
        if download:
            raise DataError(f"{root}: {config.name} cannot be downloaded: {error}") from error
        raise DataError(
            f"{root}: {config.name} is missing there or damaged: set data.download: true to fetch it"
        ) from error


def _imagefolder(config: DataConfig) -> Dataset:
    root = Path(config.path or "")
    train, test = scan_both(root)
    splits = [Split.of(FileImages(found.files), found.labels) for found in (train, test)]
    note = left_out_line(root, train.left_out + test.left_out)
    return Dataset(config.name, train.classes, splits[0], splits[1], note=note)


_TORCHVISION_NAMES = ("cifar10", "cifar100", "caltech101", "food101")
_LOADERS: Mapping[str, Callable[[DataConfig], Dataset]] = {
    "digits": _digits,
    "packed": _packed,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "caltech101": _caltech101,
    "food101": _food101,
    "imagefolder": _imagefolder,
}
