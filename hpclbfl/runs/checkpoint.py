"""Checkpoints on disk: atomic, with checksums; the last two are kept.

```
checkpoints/step-000000120/{shared.pt, client-00000.pt, ..., MANIFEST.json}
```

Every rank writes the files of its clients into a folder with a leading dot. When all are on disk, rank 0 adds the
manifest with their checksums and renames the folder, so a folder without the dot is complete. The checksums detect
later damage; then the previous checkpoint is used.
"""

from __future__ import annotations

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
from hpclbfl.core.files import sync_folder, write_new
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
    """The content of MANIFEST.json."""

    format: int
    identity: dict[str, Any]
    """The fingerprint of the experiment, under the name that it has in all versions."""
    sha256: dict[str, str]
    """Checksum of each file, by name."""


@dataclass(frozen=True)
class Found:
    """A checkpoint that this rank has read: the shared part, and the parts of its clients by number."""

    step: int
    fingerprint: dict[str, Any]
    shared: dict[str, Any]
    clients: dict[int, dict[str, Any]]


class CheckpointStore:
    """The checkpoints of a run.

    Args:
        folder: `checkpoints/` of the run folder.
        comm: `save` and `load` are collectives.
    """

    def __init__(self, folder: Path, comm: Communicator) -> None:
        self.folder, self._comm = folder, comm

    def steps(self) -> list[int]:
        """See `hpclbfl.runs.folder.checkpoint_steps`."""
        return checkpoint_steps(self.folder)

    def save(
        self, step: int, fingerprint: dict[str, Any], shared: dict[str, Any], clients: dict[int, dict[str, Any]]
    ) -> None:
        """Publish a checkpoint.

        Args:
            step: finished optimizer steps.
            fingerprint: what a resuming job is compared with; only rank 0's is saved, as with `shared`.
            shared: state that all clients have in common.
            clients: states of this rank's clients, by number.

        Raises:
            EnvironmentFault: a rank could not write; older checkpoints stay as they are.
            TypeError: a component's state cannot be restored; see `core.state`.
        """
        begin = time.perf_counter()
        comm, temporary = self._comm, self.folder / f".step-{step:09d}"
        parts = {_client_file(client): part for client, part in clients.items()}
        if comm.rank == 0:
            parts["shared.pt"] = shared
        for name, part in parts.items():
            check_restorable(part, name.removesuffix(".pt"))
        self._on_all_ranks(self._prepare, temporary)
        written = self._on_all_ranks(_write_files, temporary, parts)
        checksums = {name: digest for files in written for name, digest in files.items()}
        manifest = {"format": FORMAT, "step": step, "identity": fingerprint, "sha256": checksums}
        self._on_all_ranks(self._publish, temporary, manifest)
        logger.debug(f"{self.folder}: saved the checkpoint of step {step} in {time.perf_counter() - begin:.2f} s")

    def _on_all_ranks(self, action: Any, temporary: Path, *arguments: Any) -> list[Any]:
        """The result of every rank; an error on one rank is raised on all, so that none waits forever."""
        result, problem = None, ""
        try:
            result = action(temporary, *arguments)
        except (OSError, EnvironmentFault, RuntimeError) as error:
            problem = getattr(error, "strerror", None) or str(error)
        gathered = self._comm.allgather((result, problem))
        for rank, (_, problem) in enumerate(gathered):
            if problem:
                with suppress(OSError):
                    shutil.rmtree(temporary)
                raise EnvironmentFault(f"{self.folder}: rank {rank} cannot write a checkpoint: {problem.lower()}")
        return [result for result, _ in gathered]

    def _prepare(self, temporary: Path) -> None:
        if self._comm.rank == 0:
            for stale in numbers_in(self.folder, 9, ".step-"):
                shutil.rmtree(self.folder / f".step-{stale:09d}")
            # Fails if the run folder was removed, which is intended.
            temporary.mkdir()

    def _publish(self, temporary: Path, manifest: dict[str, Any]) -> None:
        if self._comm.rank:
            return
        write_json(temporary / "MANIFEST.json", manifest)
        final = self.folder / temporary.name.removeprefix(".")
        if final.is_symlink():
            final.unlink()
        elif final.exists():
            # A run that resumed from an older checkpoint reaches this step again.
            shutil.rmtree(final)
        temporary.rename(final)
        sync_folder(self.folder)
        for step in self.steps()[KEPT:]:
            shutil.rmtree(self.folder / f"step-{step:09d}")

    def load(
        self, clients: Iterable[int], check: Callable[[Found], None] = lambda found: None
    ) -> tuple[Found | None, list[str]]:
        """The newest checkpoint that every rank can read and accepts, or None; and a line about each one skipped.

        Args:
            clients: the clients whose parts this rank needs.
            check: raises DataError for a checkpoint that does not fit.
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
            gathered = [text for text in self._comm.allgather(problem) if text]
            if not gathered:
                return found, problems
            problems.append(gathered[0])
        return None, problems

    def _read(self, step: int, clients: Sequence[int]) -> Found:
        folder = self.folder / f"step-{step:09d}"
        manifest = read_json(folder / "MANIFEST.json", Manifest)
        if manifest is None:
            raise DataError(f"{folder}: is damaged: has no manifest")
        if manifest.format != FORMAT:
            raise DataError(f"{folder}: has format {manifest.format}; this version reads format {FORMAT}")
        shared = self._part(folder, "shared.pt", manifest)
        # The caller refuses another number of clients, with a better message.
        present = [client for client in clients if _client_file(client) in manifest.sha256]
        parts = {client: self._part(folder, _client_file(client), manifest) for client in present}
        return Found(step, manifest.identity, shared, parts)

    def _part(self, folder: Path, name: str, manifest: Manifest) -> dict[str, Any]:
        # A file without a checksum does not belong to the checkpoint.
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
        write_new(folder / name, content)
        checksums[name] = checksum(content)
    sync_folder(folder)
    return checksums
