"""A packed file, written by `hpclbfl data pack`; its format stands in `hpclbfl.data.packed`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from hpclbfl.config.components import DATASETS
from hpclbfl.config.sections.data import PlacedConfig
from hpclbfl.core.errors import DataError
from hpclbfl.data.datasets import Dataset
from hpclbfl.data.packed import PackedFile
from hpclbfl.data.splits import PackedImages, Split


class PackedConfig(PlacedConfig):
    """See the module."""

    path_meaning: ClassVar[str] = "a packed file"

    @property
    def title(self) -> str:
        """The file's own name."""
        return Path(self.path).stem if self.path else self.name


@DATASETS.register("packed", PackedConfig)
def packed(config: PackedConfig) -> Dataset:
    """See the module."""
    return open_packed("packed", config.existing_path())


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
