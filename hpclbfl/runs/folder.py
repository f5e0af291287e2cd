"""The run folder: its files, and the content of the small ones.

```
<run>/{config.yaml, parts/, status.json, DONE.json, model.pt, checkpoints/,
       attempts/000/{rank00000.h5, provenance.json, log}}
```

`--resume never` moves all of it to `earlier/000/` and begins again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from hpclbfl.config.job import CONFIG
from hpclbfl.config.own_sources import PARTS
from hpclbfl.core.errors import DataError, EnvironmentFault
from hpclbfl.core.files import explained_writes, make_folder
from hpclbfl.core.jsonfile import read_json, write_json
from hpclbfl.core.yamlfile import write_sealed

State = Literal["running", "done", "failed", "requeue"]
"""State of a run: training, finished, ended by an error, or stopped early and waiting to be resumed."""
Count = Annotated[int, Field(ge=0, lt=2**53)]
RUN_FILES = (
    *("DONE.json", "model.pt", "sharpness.h5", "status.json", "tally.json"),
    *("checkpoints", "attempts", PARTS, "config.yaml"),
)
"""Everything that one training of a run leaves, in the order in which it is moved away: `config.yaml`, which describes
the rest, goes last."""


@dataclass(frozen=True)
class Status:
    """The content of status.json."""

    state: State
    time: str = ""
    """UTC, ISO 8601."""
    step: Count | None = None
    """Finished optimizer steps."""
    epoch: float | None = None
    error: str | None = None
    rank: Count | None = None
    """The rank that failed."""


@dataclass(frozen=True)
class Done:
    """The content of DONE.json, which is written last, when a run is finished."""

    reason: str
    """The stop condition that was met."""
    step: Count
    epoch: Annotated[float, Field(ge=0, lt=1e9)]
    num_samples: Count
    hash: str
    """Digest of the experiment."""
    elapsed_s: float = 0.0
    top1: float | None = None
    """0 to 1; None if it was NaN."""
    top5: float | None = None
    loss: float | None = None
    """Test cross-entropy, nats."""
    num_train: Count | None = None
    """N, size of the training set; None in files of older versions."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of model.pt, by name; empty in files of older versions."""


@dataclass(frozen=True)
class Attempt:
    """One start of a run; a run that resumes has several."""

    number: int
    path: Path

    @property
    def provenance(self) -> Path:
        """See `hpclbfl.runs.provenance`."""
        return self.path / "provenance.json"

    @property
    def log(self) -> Path:
        """Diagnostics as text."""
        return self.path / "log"

    def rank_log(self, rank: int) -> Path:
        """The HDF5 log of one rank."""
        return self.path / f"rank{rank:05d}.h5"

    def write_provenance(self, provenance: dict[str, Any]) -> None:
        """Write provenance.json atomically. Raises EnvironmentFault if it cannot be written."""
        write_json(self.provenance, provenance)


class RunFolder:
    """A run's folder. Nothing is created or read before a method needs it.

    Every writing method raises EnvironmentFault, one line that names the path, if the folder cannot be written. Under
    MPI only rank 0 writes; it sends the attempt's number to the other ranks, which call `attempt(number)`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def config(self) -> Path:
        """The resolved job."""
        return self.path / CONFIG

    @property
    def model(self) -> Path:
        """The trained model of a finished run."""
        return self.path / "model.pt"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def create(self) -> None:
        """Create the folder with its subfolders; existing ones stay as they are."""
        for folder in (self.checkpoints, self.path / "attempts"):
            make_folder(folder)

    def write_config(self, text: str) -> None:
        """Write config.yaml and its checksum atomically."""
        write_sealed(self.config, text)

    def attempt(self, number: int) -> Attempt:
        """The attempt with this number, whether it exists or not."""
        return Attempt(number, self.path / "attempts" / f"{number:03d}")

    def attempts(self) -> list[Attempt]:
        """All attempts so far, the oldest first."""
        return [self.attempt(number) for number in numbers_in(self.path / "attempts", 3)]

    def next_attempt(self) -> Attempt:
        """Create the next attempt's folder; processes that do so at the same time get different numbers."""
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
        """Replace status.json by the state, the time (UTC) and these fields of `Status`."""
        write_json(self.path / "status.json", {"state": state, "time": utc_now(), **fields})

    def status(self) -> Status | None:
        """The content of status.json; None if it is missing or cannot be read."""
        try:
            return read_json(self.path / "status.json", Status)
        except DataError:
            return None

    def mark_done(self, summary: dict[str, Any]) -> None:
        """Write DONE.json: the run is finished."""
        write_json(self.path / "DONE.json", {"time": utc_now(), **summary})

    def done(self) -> Done | None:
        """The content of DONE.json; None while the run is not finished.

        Raises:
            DataError: it is damaged.
        """
        return read_json(self.path / "DONE.json", Done)

    def is_empty(self) -> bool:
        """Whether nothing was trained here; an attempt that wrote neither provenance nor log does not count."""
        names = ("config.yaml", "DONE.json", "model.pt")
        if any((self.path / name).exists() for name in names) or checkpoint_steps(self.checkpoints):
            return False
        return not any(a.provenance.exists() or any(a.path.glob("rank*.h5")) for a in self.attempts())

    def set_aside(self) -> Path | None:
        """Move all files of the run to `earlier/<number>`, so that it can start anew; None if it is empty."""
        present = [path for name in RUN_FILES if (path := self.path / name).exists()]
        if self.is_empty() or not present:
            return None
        earlier = self.path / "earlier"
        make_folder(earlier)
        number = max(numbers_in(earlier, 3), default=-1)
        target = earlier / f"{number:03d}"
        # config.yaml is moved last: if it is missing there, the last move was interrupted, and this completes it.
        if number < 0 or (target / "config.yaml").exists() or any((target / path.name).exists() for path in present):
            target = earlier / f"{number + 1:03d}"
        with explained_writes(target):
            target.mkdir(exist_ok=True)
            for path in present:
                path.rename(target / path.name)
        return target

    def clear_done(self) -> None:
        """Remove DONE.json, if it exists, because the run continues."""
        path = self.path / "DONE.json"
        with explained_writes(path):
            path.unlink(missing_ok=True)


def utc_now() -> str:
    """The present time, ISO 8601 in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in `checkpoints/`, the newest first; damaged ones may be among them."""
    steps = numbers_in(folder, 9, "step-")
    return [step for step in reversed(steps) if not (folder / f"step-{step:09d}").is_symlink()]


def numbers_in(folder: Path, width: int, prefix: str = "", suffix: str = "") -> list[int]:
    """The numbers in names `<prefix><number><suffix>` in a folder, in order; empty if there is no folder.

    Names with another number of leading zeros do not count.

    Raises:
        EnvironmentFault: the folder cannot be read.
    """
    shape = re.compile(f"{re.escape(prefix)}([0-9]{{{width},18}}){re.escape(suffix)}")
    try:
        found = [int(match[1]) for path in folder.iterdir() if (match := shape.fullmatch(path.name))]
        return sorted(n for n in found if (folder / f"{prefix}{n:0{width}d}{suffix}").exists())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise EnvironmentFault(f"{folder}: cannot be read: {error.strerror}") from error
