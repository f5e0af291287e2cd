"""Sections of a job file: which data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StrictBool, StringConstraints, model_validator

from hpclbfl.config.sections.base import PathText, PositiveInt, Section, Whole
from hpclbfl.core.text import shown

TORCHVISION = ("cifar10", "cifar100", "caltech101", "food101")
"""Sets that can be fetched."""


class DataConfig(Section):
    """Which images, from where, and how they are prepared."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    """digits, packed, cifar10, cifar100, caltech101, food101 or imagefolder."""
    path: PathText | None = None
    """The packed file, the image folder, or the folder that holds a torchvision set; relative to the job file."""
    download: StrictBool = False
    """Fetch a torchvision set that is not there; one rank per node does it."""
    augment: Literal["none", "crop_flip", "resized_crop_flip"] = "none"
    """crop_flip: pad by size/8, crop, flip (CIFAR). resized_crop_flip: random resized crop and flip (ImageNet)."""
    limit: PositiveInt | None = None
    """Keep this many training images, evenly over the classes; the test split is cut in the same proportion."""
    resize: Annotated[Whole, Field(gt=0, le=10_000)] | None = None
    """Side of the square images that the net sees, pixels; null keeps the size of the files."""
    in_memory: StrictBool | None = None
    """Decode all images once into memory; null: when they are of one size and small."""
    workers: Annotated[Whole, Field(ge=0, le=1024)] = 2
    """Threads per rank that decode images on the fly (not used for images in memory)."""

    @model_validator(mode="after")
    def _own_keys(self) -> DataConfig:
        if self.path is not None and self.name == "digits":
            raise ValueError("'path' goes with the other sets: digits come with the package")
        if self.download and self.name not in TORCHVISION:
            raise ValueError(f"'download' goes with {', '.join(TORCHVISION)}, not {shown(self.name)}")
        if self.workers != 2 and self.in_memory:
            raise ValueError("'workers' decode on the fly: they do not go with 'in_memory: true'")
        if self.augment == "resized_crop_flip":
            if self.resize is None:
                raise ValueError("'augment: resized_crop_flip' needs 'resize', the side of the crops in pixels")
            if self.in_memory:
                raise ValueError("'in_memory: true' goes with augment none or crop_flip, not resized_crop_flip")
        return self

    @property
    def title(self) -> str:
        """What people call the set: a packed file by its own name."""
        return Path(self.path).stem if self.name == "packed" and self.path else self.name
