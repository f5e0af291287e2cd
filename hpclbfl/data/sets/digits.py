"""Handwritten digits of 8x8 px in 10 classes, scikit-learn's; they come with the package."""

from __future__ import annotations

from pathlib import Path

from hpclbfl.config.components import DATASETS
from hpclbfl.config.sections import ImageDataConfig
from hpclbfl.data.datasets import Dataset

DIGITS = Path(__file__).parents[1] / "digits.h5"


class DigitsConfig(ImageDataConfig):
    """See the module."""

    @property
    def source(self) -> Path:
        """See `ImageDataConfig`."""
        return DIGITS


@DATASETS.register("digits", DigitsConfig)
def digits(config: DigitsConfig) -> Dataset:
    """See the module."""
    from hpclbfl.data.sets.packed import open_packed

    return open_packed("digits", DIGITS)
