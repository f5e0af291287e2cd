"""Section of a job file: what all data sets share, and what those of images share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, StrictBool, model_validator

from hpclbfl.config.part_names import brief
from hpclbfl.config.sections.base import PathText, PositiveInt, Section, Whole, path_fields
from hpclbfl.core.errors import ConfigError

Data = TypeVar("Data", bound="DataConfig")


class DataConfig(Section):
    """The data set."""

    name: str
    """Which set."""
    limit: PositiveInt | None = None
    """Keep only this many training samples, evenly over the classes, else over the groups; the test split shrinks in
    the same proportion."""

    unhashed: ClassVar[frozenset[str]] = frozenset()
    """Keys that do not change the result; paths are never part of a run's hash, the data's content is."""

    @property
    def title(self) -> str:
        """What people call the set."""
        return brief(self.name)

    @property
    def place(self) -> str:
        """Where the set lies, for error messages: its path where it has one, else its name."""
        return next(iter(self._paths()), self.title)

    @property
    def file_name(self) -> str | None:
        """Of the file or folder that the set is, whatever folder that lies in; None: its name says all."""
        return next((Path(path).name for path in self._paths()), None)

    @property
    def downloads(self) -> bool:
        """Whether the set is to be fetched where it is not there yet."""
        return False

    def download_now(self) -> None:
        """Fetch the set. Raises DataError if that fails."""

    def without_download(self: Data) -> Data:
        """The section for a process that finds the set in its place."""
        return self

    def hashed(self, values: dict[str, Any]) -> dict[str, Any]:
        """The keys of the dumped section that a run's hash covers."""
        fields = type(self).model_fields
        left_out = self.unhashed | {fields[name].alias or name for name in path_fields(type(self))}
        return {key: value for key, value in values.items() if key not in left_out}

    def _paths(self) -> Iterator[str]:
        return (path for key in path_fields(type(self)) if (path := getattr(self, key)))


class ImageDataConfig(DataConfig):
    """A set of images, and how they are prepared.

    Images become 8-bit RGB: 16-bit grey is scaled and other depths are refused, the camera's orientation is applied,
    alpha is dropped, and of an animation the first frame is used.
    """

    augment: Literal["none", "crop_flip", "resized_crop_flip"] = "none"
    """crop_flip: pad by size/8, crop, flip (as usual for CIFAR). resized_crop_flip: random resized crop and flip (as
    usual for ImageNet); needs `resize`."""
    resize: Annotated[Whole, Field(gt=0, le=10_000)] | None = None
    """Side of the square input images, pixels; null: as large as the files are. `alexnet` needs 63 and more,
    `vit_b_16` 224."""
    in_memory: StrictBool | None = None
    """Decode all images once and keep them in memory; null: if they are small and of one size."""
    workers: Annotated[Whole, Field(ge=0, le=1024)] = 2
    """Threads per rank that decode images on the fly (not used for images in memory)."""

    unhashed: ClassVar[frozenset[str]] = frozenset(("in_memory", "workers"))

    @model_validator(mode="after")
    def _keys_fit(self) -> ImageDataConfig:
        if self.workers != 2 and self.in_memory:
            raise ValueError("'workers' decode on the fly: they do not go with 'in_memory: true'")
        if self.augment == "resized_crop_flip":
            if self.resize is None:
                raise ValueError("'augment: resized_crop_flip' needs 'resize', the side of the crops in pixels")
            if self.in_memory:
                raise ValueError("'in_memory: true' goes with augment none or crop_flip, not resized_crop_flip")
        return self

    @property
    def source(self) -> Path | None:
        """The file or folder that the set lies in; None: not stated."""
        return None

    def holds(self, path: Path) -> bool:
        """Whether a path lies among the set's images."""
        return False


class PlacedConfig(ImageDataConfig):
    """Images that lie in a file or folder of the user's."""

    path: PathText | None = None
    """The packed file, the image folder, or the folder of a torchvision set; relative to the job file."""

    path_meaning: ClassVar[str]
    """What the path leads to, for the message that it is missing."""

    @property
    def source(self) -> Path | None:
        """See `ImageDataConfig`."""
        return None if self.path is None else Path(self.path)

    def existing_path(self) -> Path:
        """The path. Raises ConfigError if the job does not state it."""
        if self.path is None:
            raise ConfigError(f"data.path: missing: '{self.name}' needs {self.path_meaning}")
        return Path(self.path)
