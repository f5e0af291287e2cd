"""The folder of a sweep: its runs, their job files, and the Slurm jobs that were submitted for them.

```
<sweep>/{sweep.json, jobs/{<run>.yaml, parts/}, runs/<run>/, submissions/000.json, slurm/, logs/<run>.log, lease/}
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from hpclbfl.core.errors import ConfigError, DataError, EnvironmentFault
from hpclbfl.core.files import make_folder, write_text
from hpclbfl.core.jsonfile import read_json, write_json
from hpclbfl.runs.folder import RunFolder, numbers_in, utc_now
from hpclbfl.runs.parts import keep_parts
from hpclbfl.runs.slurm_client import JobId
from hpclbfl.slurm.expand import Run
from hpclbfl.slurm.sweep_file import Overrides, describe

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,200}$")]
"""Suitable as the name of a folder."""


@dataclass(frozen=True)
class Entry:
    """A run, as sweep.json lists it."""

    id: Word
    digest: str
    ranks: Annotated[int, Field(ge=1, lt=2**31)]
    overrides: Overrides
    listed: bool = True
    """Whether the sweep file had it when the sweep was last started."""

    @property
    def label(self) -> str:
        """The overrides in one line."""
        return describe(self.overrides)

    def names(self, digest: str) -> bool:
        """Whether a finished run with this digest is this one; older versions put another digest into the name."""
        return digest in (self.digest, self.id.rpartition("-")[2])


@dataclass(frozen=True)
class Manifest:
    """Content of sweep.json."""

    runs: list[Entry]
    name: str = ""
    source: str = ""
    time: str = ""


@dataclass(frozen=True)
class Submission:
    """Content of submissions/000.json."""

    tasks: dict[JobId, Word]
    """Runs by job."""
    time: str = ""
    profile: str = ""


class SweepFolder:
    """The folder of a sweep; nothing is created or read until a method needs it.

    Methods that write raise EnvironmentFault, one line that names the path, if they cannot.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def manifest(self) -> Path:
        """sweep.json: the sweep and its runs."""
        return self.path / "sweep.json"

    @property
    def slurm(self) -> Path:
        """Where submitit keeps its files and jobs write their output."""
        return self.path / "slurm"

    def run(self, id_: str) -> RunFolder:
        """The folder of a run."""
        return RunFolder(self.path / "runs" / id_)

    def job_file(self, id_: str) -> Path:
        """The job file of a run."""
        return self.path / "jobs" / f"{id_}.yaml"

    def log(self, id_: str) -> Path:
        """Output of a run on this machine, without a scheduler."""
        return self.path / "logs" / f"{id_}.log"

    def job_log(self, job: str) -> Path:
        """Output of a Slurm job."""
        return self.slurm / f"{job}_0_log.out"

    def write_runs(self, name: str, source: Path, runs: Sequence[Run]) -> None:
        """Write the job files and the list of runs; runs that the sweep file no longer has stay, marked as such."""
        make_folder(self.path / "jobs")
        for run in runs:
            # Copied, so that what runs is what was submitted.
            keep_parts(self.path / "jobs", run.job)
            write_text(self.job_file(run.id), run.job.to_yaml())
        listed = {run.id: Entry(run.id, run.digest, run.ranks, run.overrides) for run in runs}
        earlier = [] if not self.manifest.exists() else self.entries()
        entries = [*listed.values(), *(entry for entry in earlier if entry.id not in listed)]
        rows = [{**vars(entry), "listed": entry.id in listed} for entry in entries]
        write_json(self.manifest, {"name": name, "source": str(source.absolute()), "time": utc_now(), "runs": rows})

    def entries(self) -> list[Entry]:
        """The runs of the sweep.

        Raises:
            ConfigError: not the folder of a sweep.
        """
        try:
            found = read_json(self.manifest, Manifest)
        except DataError as error:
            raise EnvironmentFault(f"{error}; hpclbfl sweep writes it anew once it is removed") from error
        if found is None:
            what = "no sweep.json in it; give the folder of a sweep" if self.path.is_dir() else "no such folder"
            raise ConfigError(f"{self.path}: {what}")
        return found.runs

    def record(self, profile: str, tasks: Mapping[str, str]) -> None:
        """Record a submission: runs by job (`12`, or of an array `12_3`); the caller holds the sweep's lock."""
        folder = self.path / "submissions"
        make_folder(folder)
        number = max(numbers_in(folder, 3, suffix=".json"), default=-1) + 1
        write_json(folder / f"{number:03d}.json", {"time": utc_now(), "profile": profile, "tasks": dict(tasks)})

    def jobs(self) -> dict[str, list[str]]:
        """All Slurm jobs that were ever submitted for each run, the newest last."""
        found: dict[str, list[str]] = {}
        folder = self.path / "submissions"
        for number in numbers_in(folder, 3, suffix=".json"):
            path = folder / f"{number:03d}.json"
            try:
                submission = read_json(path, Submission)
            except DataError as error:
                raise EnvironmentFault(f"{error}; it records which jobs were submitted") from error
            for job, run in submission.tasks.items() if submission is not None else ():
                found.setdefault(run, []).append(job)
        return found
