"""Sections of a job file: which data, and how they are spread over the clients."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, StrictBool, model_validator

from hpclbfl.sections.base import Section


class DataConfig(Section):
    """Which images, from where, and how they are prepared."""

    name: str
    """digits, packed, cifar10, cifar100, caltech101, food101 or imagefolder."""
    path: str | None = None
    """The packed file, the image folder, or the folder that holds a torchvision set; relative to the job file."""
    download: StrictBool = False
    """Fetch a torchvision set that is not there; one rank per node does it."""
    augment: Literal["none", "crop_flip", "resized_crop_flip"] = "none"
    """crop_flip: pad by size/8, crop, flip (CIFAR). resized_crop_flip: random resized crop and flip (ImageNet)."""
    limit: PositiveInt | None = None
    """Keep this many training images, evenly over the classes; the test split is cut in the same proportion."""
    resize: PositiveInt | None = None
    """Side of the square images that the net sees, pixels; null keeps the size of the files."""
    in_memory: StrictBool | None = None
    """Decode all images once into memory; null: when they are of one size and small."""
    workers: NonNegativeInt = 2
    """Threads per rank that decode images on the fly (not used for images in memory)."""

    @property
    def title(self) -> str:
        """What people call the set: a packed file by its own name."""
        return Path(self.path).stem if self.name == "packed" and self.path else self.name


class PartitionConfig(Section):
    """How the training set is spread over the clients."""

    kind: Literal["iid", "labels_per_client", "dirichlet", "quantity"] = "iid"
    labels: PositiveInt | None = None
    """labels_per_client: how many classes each client holds (contiguous blocks, as in the paper)."""
    alpha: PositiveFloat | None = None
    """dirichlet: concentration of the class mix; quantity: concentration of the shard sizes. Small is skewed."""

    @model_validator(mode="after")
    def _own_keys(self) -> PartitionConfig:
        if (self.labels is not None) != (self.kind == "labels_per_client"):
            raise ValueError("'labels' goes with kind labels_per_client, and only with it")
        if (self.alpha is not None) != (self.kind in ("dirichlet", "quantity")):
            raise ValueError("'alpha' goes with kind dirichlet or quantity, and only with them")
        return self
