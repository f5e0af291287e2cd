"""The run folder: where a run's files lie, and how they are written so that nobody ever reads half a file.

```
<run>/{config.yaml, status.json, DONE.json, checkpoints/, attempts/000/{rank00000.h5, provenance.json, log}}
```
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from hpclbfl.core.files import explained_writes, write_text
from hpclbfl.core.jsonfile import SEAL, write_json

State = Literal["running", "done", "failed", "requeue"]
"""Of a run: training, finished, ended by an error, or stopped early and to be resumed."""


@dataclass(frozen=True)
class Attempt:
    """One start of a run; a run that resumes has several."""

    number: int
    path: Path

    @property
    def provenance(self) -> Path:
        """What ran, where and on what."""
        return self.path / "provenance.json"

    @property
    def log(self) -> Path:
        """Diagnostics as text."""
        return self.path / "log"

    def rank_log(self, rank: int) -> Path:
        """The HDF5 log of one rank."""
        return self.path / f"rank{rank:05d}.h5"

    def write_provenance(self, provenance: dict[str, Any]) -> None:
        """Write provenance.json, whole or not at all. Raises EnvironmentFault if it cannot be written."""
        write_json(self.provenance, provenance)


class RunFolder:
    """A run's folder. Nothing is made or read before a method asks for it.

    Every writing method raises EnvironmentFault, one line that names the path, when the folder cannot be written.
    Under MPI rank 0 alone calls them and tells the others the attempt's number, for `attempt(number)`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def config(self) -> Path:
        """The resolved job."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def create(self) -> None:
        """Make the folder with its subfolders; what is there stays."""
        for folder in (self.checkpoints, self.path / "attempts"):
            with explained_writes(folder):
                folder.mkdir(parents=True, exist_ok=True)

    def write_config(self, text: str) -> None:
        """Write config.yaml, whole or not at all."""
        write_text(self.config, text)

    def attempt(self, number: int) -> Attempt:
        """The attempt with this number, made already or not."""
        return Attempt(number, self.path / "attempts" / f"{number:03d}")

    def attempts(self) -> list[Attempt]:
        """All attempts so far, the oldest first."""
        names = [p.name for p in (self.path / "attempts").glob("[0-9]*")]
        return [self.attempt(number) for number in sorted(int(name) for name in names if name.isdigit())]

    def next_attempt(self) -> Attempt:
        """Make the next attempt's folder; two processes that ask at once get two numbers."""
        self.create()
        number = max((a.number for a in self.attempts()), default=-1) + 1
        while True:
            attempt = self.attempt(number)
            with explained_writes(attempt.path):
                try:
                    attempt.path.mkdir()
                except FileExistsError:
                    number += 1
                    continue
            return attempt

    def write_status(self, state: State, **fields: Any) -> None:
        """Replace status.json by the state, the time (UTC) and the given fields (JSON values; `error`: one line)."""
        write_json(self.path / "status.json", {"state": state, "time": utc_now(), **fields})

    def status(self) -> dict[str, Any] | None:
        """status.json, or None when there is none that can be read."""
        return read_json(self.path / "status.json")

    def mark_done(self, summary: dict[str, Any]) -> None:
        """Write DONE.json: the run is finished and is not to be run again."""
        write_json(self.path / "DONE.json", {"time": utc_now(), **summary})

    def done(self) -> dict[str, Any] | None:
        """DONE.json, or None when the run is not done."""
        return read_json(self.path / "DONE.json")

    def clear_done(self) -> None:
        """Take DONE.json away, if it is there: the run goes on."""
        path = self.path / "DONE.json"
        with explained_writes(path):
            path.unlink(missing_ok=True)


def utc_now() -> str:
    """The time now, ISO 8601 in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in `checkpoints/`, the newest first; damaged ones may be among them."""
    names = (path.name.removeprefix("step-") for path in folder.glob("step-*"))
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def read_json(path: Path) -> dict[str, Any] | None:
    """A file that holds an object; None where it is not there, or torn."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return {k: v for k, v in value.items() if k != SEAL} if isinstance(value, dict) else None
