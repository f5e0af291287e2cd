"""Checkpoints on disk: atomic, with checksums; the last two are kept.

```
checkpoints/step-000000120/{shared.pt, client-00000.pt, ..., MANIFEST.json}
```

Every rank writes the files of its clients into a folder with a leading dot; when all are on disk, rank 0 adds the
manifest with their checksums and renames the folder. A folder without the dot is therefore complete. Later damage is
detected by the checksums, and the previous checkpoint is used.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpclbfl.comm.base import Communicator
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.core.errors import DataError, EnvironmentFault
from hpclbfl.core.files import create, sync_folder
from hpclbfl.core.jsonfile import read_json, write_json
from hpclbfl.core.state import check_restorable, checkpointed_types
from hpclbfl.runs.folder import checkpoint_steps, numbers_in
from hpclbfl.runs.tensorfile import checksum, read_tensors, to_bytes

logger = Diagnostics(__name__)

KEPT = 2
FORMAT = 1
"""Of the files; increased when older ones can no longer be read."""


@dataclass(frozen=True)
class Manifest:
    """What MANIFEST.json says."""

    format: int
    identity: dict[str, Any]
    sha256: dict[str, str]
    """Of each file, by name."""


@dataclass(frozen=True)
class Found:
    """A checkpoint that this rank has read: the shared part, and those of its clients by number."""

    step: int
    identity: dict[str, Any]
    shared: dict[str, Any]
    clients: dict[int, dict[str, Any]]


class CheckpointStore:
    """The checkpoints of a run.

    Args:
        folder: `checkpoints/` of the run folder.
        comm: the engine; `save` and `load` are collectives.
    """

    def __init__(self, folder: Path, comm: Communicator) -> None:
        self.folder, self._comm = folder, comm

    def steps(self) -> list[int]:
        """See `runfolder.checkpoint_steps`."""
        return checkpoint_steps(self.folder)

    def save(
        self, step: int, identity: dict[str, Any], shared: dict[str, Any], clients: dict[int, dict[str, Any]]
    ) -> None:
        """Publish a checkpoint.

        Args:
            identity: what a resuming job is compared with; taken from rank 0, like `shared`. clients: parts of this
            rank's clients.

        Raises:
            EnvironmentFault: some rank could not write; older checkpoints stay as they are.
            TypeError: a component's state could not be restored; see `core.state`.
        """
        begin = time.perf_counter()
        comm, temporary = self._comm, self.folder / f".step-{step:09d}"
        parts = {_client_file(client): part for client, part in clients.items()}
        if comm.rank == 0:
            parts["shared.pt"] = shared
        for name, part in parts.items():
            check_restorable(part, name.removesuffix(".pt"))
        self._together(self._prepare, temporary)
        written = self._together(_write_files, temporary, parts)
        checksums = {name: digest for files in written for name, digest in files.items()}
        manifest = {"format": FORMAT, "step": step, "identity": identity, "sha256": checksums}
        self._together(self._publish, temporary, manifest)
        logger.debug(f"{self.folder}: saved the checkpoint of step {step} in {time.perf_counter() - begin:.2f} s")

    def _together(self, action: Any, *arguments: Any) -> list[Any]:
        """Run on every rank; an error on one rank is an error on all, so that none is left waiting."""
        result, problem = None, ""
        try:
            result = action(*arguments)
        except (OSError, EnvironmentFault, RuntimeError) as error:
            problem = getattr(error, "strerror", None) or str(error)
        rows = self._comm.allgather((result, problem))
        for rank, (_, told) in enumerate(rows):
            if told:
                with suppress(OSError):
                    shutil.rmtree(arguments[0])
                raise EnvironmentFault(f"{self.folder}: rank {rank} cannot write a checkpoint: {told.lower()}")
        return [row[0] for row in rows]

    def _prepare(self, temporary: Path) -> None:
        if self._comm.rank == 0:
            for stale in numbers_in(self.folder, 9, ".step-"):
                shutil.rmtree(self.folder / f".step-{stale:09d}")
            # The folder exists, unless somebody has removed the run.
            temporary.mkdir()

    def _publish(self, temporary: Path, manifest: dict[str, Any]) -> None:
        if self._comm.rank:
            return
        write_json(temporary / "MANIFEST.json", manifest)
        final = self.folder / temporary.name.removeprefix(".")
        if final.is_symlink():
            final.unlink()
        elif final.exists():
            # A run that resumed from an older one passes here again.
            shutil.rmtree(final)
        temporary.rename(final)
        sync_folder(self.folder)
        for step in self.steps()[KEPT:]:
            shutil.rmtree(self.folder / f"step-{step:09d}")

    def load(
        self, clients: Iterable[int], check: Callable[[Found], None] = lambda found: None
    ) -> tuple[Found | None, list[str]]:
        """The newest checkpoint that is complete and fits on every rank, or None; and a line about each one skipped.

        Args:
            clients: whose parts this rank wants.
            check: raises DataError over one that does not fit.
        """
        wanted = list(clients)
        problems: list[str] = []
        steps: Sequence[int] = self._comm.allgather(self.steps())[0]
        for step in steps:
            found, problem = None, ""
            try:
                found = self._read(step, wanted)
                check(found)
            except DataError as error:
                problem = str(error)
            told = [text for text in self._comm.allgather(problem) if text]
            if not told:
                return found, problems
            problems.append(told[0])
        return None, problems

    def _read(self, step: int, clients: Sequence[int]) -> Found:
        folder = self.folder / f"step-{step:09d}"
        manifest = read_json(folder / "MANIFEST.json", Manifest)
        if manifest is None:
            raise DataError(f"{folder}: is damaged: has no manifest")
        if manifest.format != FORMAT:
            raise DataError(f"{folder}: has format {manifest.format}; this version reads format {FORMAT}")
        shared = self._part(folder, "shared.pt", manifest)
        # Another number of clients is refused by the caller, who can say more about it.
        there = [client for client in clients if _client_file(client) in manifest.sha256]
        parts = {client: self._part(folder, _client_file(client), manifest) for client in there}
        return Found(step, manifest.identity, shared, parts)

    def _part(self, folder: Path, name: str, manifest: Manifest) -> dict[str, Any]:
        # A name without a checksum is none of the checkpoint's files.
        found = read_tensors(folder / name, manifest.sha256.get(name, "none"), checkpointed_types())
        if not isinstance(found, dict):
            raise DataError(f"{folder / name}: is damaged: holds no mapping")
        return found


def _client_file(client: int) -> str:
    return f"client-{client:05d}.pt"


def _write_files(folder: Path, parts: dict[str, dict[str, Any]]) -> dict[str, str]:
    checksums = {}
    for name, part in parts.items():
        content = to_bytes(part)
        with create(folder / name) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        checksums[name] = checksum(content)
    sync_folder(folder)
    return checksums
