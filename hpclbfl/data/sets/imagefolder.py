"""A folder of images, train/CLASS/ and test/CLASS/.

Hidden files and files without an image's ending are left out and counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from hpclbfl.config.components import DATASETS
from hpclbfl.config.sections.data import PlacedConfig
from hpclbfl.data.datasets import Dataset
from hpclbfl.data.imagefolder import left_out_line, scan_both
from hpclbfl.data.splits import FileImages, Split


class FolderConfig(PlacedConfig):
    """See the module."""

    path_meaning: ClassVar[str] = "a folder that holds train/ and test/"

    def holds(self, path: Path) -> bool:
        """See `ImageDataConfig`."""
        root = Path(self.path or "").resolve()
        return any(path.resolve().is_relative_to(root / split) for split in ("train", "test", "val"))


@DATASETS.register("imagefolder", FolderConfig)
def imagefolder(config: FolderConfig) -> Dataset:
    """See the module."""
    root = config.existing_path()
    train, test = scan_both(root)
    splits = [Split.of(FileImages(found.files), found.labels) for found in (train, test)]
    note = left_out_line(root, train.left_out + test.left_out)
    return Dataset(config.name, train.classes, splits[0], splits[1], note=note)
