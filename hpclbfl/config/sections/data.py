"""Section of a job file: the data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StrictBool, StringConstraints, model_validator

from hpclbfl.config.sections.base import PathText, PositiveInt, Section, Whole
from hpclbfl.core.text import shown

TORCHVISION = ("cifar10", "cifar100", "caltech101", "food101")
"""Sets that can be fetched."""


class DataConfig(Section):
    """The data set, where it lies and how its images are prepared.

    Images become 8-bit RGB: 16-bit grey is scaled and other depths are refused, the camera's orientation is applied,
    alpha is dropped, and of an animation the first frame is used.
    """

    name: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    """`digits` (8x8 px, comes with the package), `packed` (a file written by `hpclbfl data pack`), `cifar10`,
    `cifar100`, `caltech101` (80 % of each class for training), `food101`, or `imagefolder` (train/CLASS/ and
    test/CLASS/; hidden files and files without an image's ending are left out and counted)."""
    path: PathText | None = None
    """The packed file, the image folder, or the folder of a torchvision set; relative to the job file."""
    download: StrictBool = False
    """Download a torchvision set that is not there yet; one rank per node does it."""
    augment: Literal["none", "crop_flip", "resized_crop_flip"] = "none"
    """crop_flip: pad by size/8, crop, flip (as usual for CIFAR). resized_crop_flip: random resized crop and flip (as
    usual for ImageNet); needs `resize`."""
    limit: PositiveInt | None = None
    """Keep only this many training images, evenly over the classes; the test split shrinks in the same proportion."""
    resize: Annotated[Whole, Field(gt=0, le=10_000)] | None = None
    """Side of the square input images, pixels; null: as large as the files are. `alexnet` needs 63 and more,
    `vit_b_16` 224."""
    in_memory: StrictBool | None = None
    """Decode all images once and keep them in memory; null: if they are small and of one size."""
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
