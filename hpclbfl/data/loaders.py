"""The loaders of a data set, whatever its samples are."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from hpclbfl.config.sections import DataConfig, ImageDataConfig
from hpclbfl.core.errors import ConfigError
from hpclbfl.data.datasets import Dataset
from hpclbfl.data.example_loader import ExampleLoader
from hpclbfl.data.examples import ArraySplit, MadeSplit
from hpclbfl.data.frames import Statistics
from hpclbfl.data.loader import Loader
from hpclbfl.data.packed import IntArray
from hpclbfl.data.samples import Samples
from hpclbfl.data.splits import Split
from hpclbfl.models import DataSpec


class BatchLoader(Protocol):
    """Batches of one split."""

    @property
    def input_dtype(self) -> torch.dtype | None:
        """Of whole numbers; None: floating point, in the job's type."""

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Of one sample's target; (): a number each."""

    @property
    def target_dtype(self) -> torch.dtype | None:
        """int64; None: floating point, in the job's type."""

    @property
    def staged_bytes(self) -> int:
        """Host memory of a sample before it is as the net takes it, bytes."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of a sample."""

    @property
    def in_memory(self) -> bool:
        """Whether batches are at hand: `prefetch` gains nothing."""

    @property
    def sample_text(self) -> str:
        """What a sample is like, in a word or two: `8 px`."""

    def __len__(self) -> int: ...

    def batch(self, samples: IntArray, passes: IntArray, augment: bool = True) -> tuple[Tensor, Tensor]:
        """Inputs [b, ...] and targets [b, ...] on the device.

        Args:
            samples: places in the split, int64 [b].
            passes: the pass that each belongs to, int64 [b].
            augment: False: as for evaluation, also of the training split.

        Raises:
            DataError: a sample cannot be read.
        """

    def example(self, count: int) -> Tensor:
        """Inputs to try a net with, [count, ...], on the device."""

    def prefetch(self, samples: IntArray, passes: IntArray, augment: bool = True) -> None:
        """Begin to read a batch."""

    def close(self) -> None:
        """End what reads."""


class Loaders(NamedTuple):
    """The two loaders of a set. `train.batch(..., augment=False)` evaluates on the training split."""

    train: BatchLoader
    test: BatchLoader


def make_loader(
    split: Samples,
    config: DataConfig,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    statistics: Statistics | None = None,
) -> BatchLoader:
    """Batches of a training split.

    Args:
        seed: the job's; keys the augmentation with pass and sample.
        device, dtype: where batches go, and as what.
        statistics: of the pixels of images; None: taken from the split.
    """
    if isinstance(split, ArraySplit | MadeSplit):
        return ExampleLoader(split, device, dtype)
    return _image_loader(split, config, seed, device, dtype, statistics=statistics)


def make_loaders(dataset: Dataset, config: DataConfig, seed: int, device: torch.device, dtype: torch.dtype) -> Loaders:
    """Loaders of both splits; images are normalised with the training split's statistics."""
    train = make_loader(dataset.train, config, seed, device, dtype)
    if not isinstance(train, Loader):
        return Loaders(train, make_loader(dataset.test, config, seed, device, dtype))
    return Loaders(train, _image_loader(dataset.test, config, seed, device, dtype, train.statistics, like=train))


def data_spec(dataset: Dataset, loader: BatchLoader) -> DataSpec:
    """What a net and a loss for this set are made for."""
    classes = len(dataset.classes)
    return DataSpec(loader.input_shape, classes, loader.input_dtype, loader.target_shape, loader.target_dtype)


def _image_loader(
    split: Samples,
    config: DataConfig,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    statistics: Statistics | None,
    like: Loader | None = None,
) -> Loader:
    if not isinstance(config, ImageDataConfig) or not isinstance(split, Split):
        raise ConfigError(f"data.name: {config.title}: there is no loader for {type(split).__name__}")
    mean, std = (None, None) if statistics is None else statistics
    shape = None if like is None else like.input_shape
    is_train = like is None
    return Loader(split, config, train=is_train, seed=seed, device=device, dtype=dtype, mean=mean, std=std, shape=shape)
