"""What torchvision's image sets have in common: a folder, into which they can be fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import StrictBool

from hpclbfl.config.sections.data import PlacedConfig
from hpclbfl.core.errors import DataError

Config = TypeVar("Config", bound="FetchedConfig")


class FetchedConfig(PlacedConfig):
    """One of torchvision's sets."""

    download: StrictBool = False
    """Download the set where it is not there yet; one rank per node does it."""

    path_meaning: ClassVar[str] = "the folder that holds the set, or where it is to be downloaded"
    unhashed: ClassVar[frozenset[str]] = PlacedConfig.unhashed | {"download"}

    def open(self, sets: Any, root: Path, download: bool) -> tuple[Any, ...]:
        """Open torchvision's sets, of `torchvision.datasets`; each set's config says which."""
        raise NotImplementedError

    @property
    def file_name(self) -> None:
        """The folder that it was fetched into tells nothing."""
        return

    @property
    def downloads(self) -> bool:
        """See `DataConfig`."""
        return self.download

    def download_now(self) -> None:
        """See `DataConfig`."""
        self.opened(download=True)

    def without_download(self: Config) -> Config:
        """See `DataConfig`."""
        return self.model_copy(update={"download": False})

    def opened(self, download: bool = False) -> tuple[Any, ...]:
        """Torchvision's sets.

        Raises:
            ConfigError: the path is missing.
            DataError: they are not there, damaged, or cannot be fetched.
        """
        from hpclbfl.core.vision import torchvision

        root = self.existing_path()
        if not root.is_dir() and not download:
            raise DataError(f"{root}: no such folder: set data.download: true to fetch {self.name} into it")
        try:
            return self.open(torchvision.datasets, root, download)
        except (RuntimeError, OSError, ValueError, KeyError, EOFError) as error:
            # torchvision checks presence and checksums, but its errors say little.
            if download:
                raise DataError(f"{root}: {self.name} cannot be downloaded: {error}") from error
            raise DataError(
                f"{root}: {self.name} is missing there or damaged: set data.download: true to fetch it"
            ) from error
