"""A sweep's folder: which runs it has, their job files, and which Slurm jobs were submitted for them.

```
<sweep>/{sweep.json, jobs/<run>.yaml, runs/<run>/, submissions/000.json, slurm/, logs/<run>.log, lease/}
```
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpclbfl.core.files import write_text
from hpclbfl.core.jsonfile import write_json
from hpclbfl.errors import ConfigError, EnvironmentFault
from hpclbfl.runfolder import RunFolder, utc_now
from hpclbfl.slurm.expand import Overrides, Run, describe

_ID = re.compile("[a-z0-9-]{1,200}")
_JOB = re.compile("[0-9]{1,18}(_[0-9]{1,18})?")


@dataclass(frozen=True)
class Entry:
    """A run, as the sweep's folder knows it."""

    id: str
    digest: str
    ranks: int
    overrides: Overrides
    listed: bool = True
    """Whether the sweep file named it when the sweep was last started."""

    @property
    def label(self) -> str:
        """The overrides in one line."""
        return describe(self.overrides)


class SweepFolder:
    """A sweep's folder. Nothing is made or read before a method asks for it.

    Methods that write raise EnvironmentFault, one line that names the path, when they cannot.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def manifest(self) -> Path:
        """Names the sweep and its runs."""
        return self.path / "sweep.json"

    @property
    def slurm(self) -> Path:
        """Where submitit keeps its files, and the jobs their output."""
        return self.path / "slurm"

    def run(self, id_: str) -> RunFolder:
        """The folder of a run."""
        return RunFolder(self.path / "runs" / id_)

    def job_file(self, id_: str) -> Path:
        """The job file of a run."""
        return self.path / "jobs" / f"{id_}.yaml"

    def log(self, id_: str) -> Path:
        """What a run on this machine, without a scheduler, printed."""
        return self.path / "logs" / f"{id_}.log"

    def job_log(self, job: str) -> Path:
        """What a Slurm job printed."""
        return self.slurm / f"{job}_0_log.out"

    def write_runs(self, name: str, source: Path, runs: Sequence[Run]) -> None:
        """Write the job files and the list of runs; runs that are no longer in the sweep file stay, marked so."""
        _make(self.path / "jobs")
        for run in runs:
            text = run.job.to_yaml()
            path = self.job_file(run.id)
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                write_text(path, text)
        listed = {run.id: Entry(run.id, run.digest, run.ranks, run.overrides) for run in runs}
        earlier = [] if not self.manifest.exists() else self.entries()
        entries = [*listed.values(), *(entry for entry in earlier if entry.id not in listed)]
        rows = [{**vars(entry), "listed": entry.id in listed} for entry in entries]
        write_json(self.manifest, {"name": name, "source": str(source.absolute()), "time": utc_now(), "runs": rows})

    def entries(self) -> list[Entry]:
        """The runs of the sweep.

        Raises:
            ConfigError: the folder is not that of a sweep.
        """
        try:
            entries = [Entry(**row) for row in json.loads(self.manifest.read_text(encoding="utf-8"))["runs"]]
            if not all(_ID.fullmatch(entry.id) for entry in entries):
                # It becomes part of paths.
                raise ValueError("an id that is no run's")
            return entries
        except FileNotFoundError as error:
            what = "no sweep.json in it; give the folder of a sweep" if self.path.is_dir() else "no such folder"
            raise ConfigError(f"{self.path}: {what}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EnvironmentFault(
                f"{self.manifest}: cannot be read; hpclbfl sweep writes it anew once it is removed"
            ) from error

    def record(self, profile: str, tasks: Mapping[str, str]) -> None:
        """Write down a submission, `tasks` by job (`12`, or of an array `12_3`); called under the sweep's lease."""
        folder = self.path / "submissions"
        _make(folder)
        number = max((int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit()), default=-1) + 1
        write_json(folder / f"{number:03d}.json", {"time": utc_now(), "profile": profile, "tasks": dict(tasks)})

    def jobs(self) -> dict[str, list[str]]:
        """The Slurm jobs that were ever submitted for each run, the newest last."""
        found: dict[str, list[str]] = {}
        files = [path for path in (self.path / "submissions").glob("*.json") if path.stem.isdigit()]
        for path in sorted(files, key=lambda path: int(path.stem)):
            tasks = _read(path).get("tasks")
            if not isinstance(tasks, dict) or not all(
                _JOB.fullmatch(job) and isinstance(tasks[job], str) for job in tasks
            ):
                # They become words of a command line of Slurm's.
                raise EnvironmentFault(f"{path}: is damaged: its tasks are no jobs of Slurm")
            for job, run in tasks.items():
                found.setdefault(run, []).append(job)
        return found


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(f"{folder}: cannot be written: {(error.strerror or str(error)).lower()}") from error


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            return value
    raise EnvironmentFault(f"{path}: cannot be read: without it nobody knows which jobs were submitted")
