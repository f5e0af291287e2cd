"""From a sweep file to its runs: every combination of the axes, validated, with an id that is derived from its job.

Axes combine as a product: each key of `grid`, the rows of `zip`, the rows of `list`, and `seeds`. Reads the sweep file
and the job file; the caller provides access to the data.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field, field_validator, model_validator

from hpclbfl.config.job import JOB, MAX_CLIENTS, JobConfig, parse_job, with_paths
from hpclbfl.config.own_parts import Lookup
from hpclbfl.config.part_names import anchored
from hpclbfl.config.sections import DataConfig, Section
from hpclbfl.config.sections.base import Name, PathText, Seed, Whole
from hpclbfl.config.validation import validated
from hpclbfl.core.errors import ConfigError, HpclbflError
from hpclbfl.core.text import MAX_SHOWN, printable, shown
from hpclbfl.core.yamlfile import read_mapping, refuse_undone, set_value
from hpclbfl.core.yamltext import dump
from hpclbfl.slurm.resources import ResourcesConfig

Overrides = dict[str, Any]
"""key.path -> value; a mapping as value replaces the whole section."""
Rows = Annotated[list[Any], Field(min_length=1)]
MAX_RUNS, MAX_AXES = 20_000, 1000
"""Of a sweep: runs before `exclude`, and keys that its axes set."""


class SweepConfig(Section):
    """A sweep file."""

    name: Annotated[Name, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the folder, `runs/<name>`."""
    job: PathText | None = None
    """The job file that all runs begin with, relative to the sweep file."""
    base: dict[str, Any] | None = None
    """The job itself, in place of a job file."""
    grid: dict[str, Rows] = Field(default_factory=dict)
    """key.path -> values; every combination."""
    zipped: dict[str, Rows] = Field(default_factory=dict, alias="zip")
    """key.path -> values, all of one length: the first of each, the second of each, and so on."""
    points: list[Overrides] | None = Field(default=None, alias="list", min_length=1)
    """Mappings of key.path -> value, one after the other."""
    seeds: Annotated[Whole, Field(gt=0, le=MAX_RUNS)] | list[Seed] | None = None
    """A number of seeds, from 0; or a list of seeds."""
    exclude: list[Overrides] = Field(default_factory=list, max_length=MAX_AXES)
    """Mappings of key.path -> value: a run that agrees with one of them in all of its keys is left out."""
    ranks: Annotated[Whole, Field(gt=0, le=MAX_CLIENTS)] | Literal["clients"] = 1
    """MPI ranks of each run; clients: one for each client."""
    resources: ResourcesConfig = ResourcesConfig()
    """What each run asks of the cluster; what is left out is up to the profile."""

    @field_validator("grid", "zipped", mode="before")
    @classmethod
    def _lists(cls, axes: Any) -> Any:
        for key, values in axes.items() if isinstance(axes, dict) else ():
            if not isinstance(values, list) or not values:
                raise ValueError(f"{shown(key)} takes a list of values")
        return axes

    @field_validator("seeds", mode="before")
    @classmethod
    def _seeds(cls, value: Any) -> Any:
        if isinstance(value, str | bool | dict) or value == []:
            raise ValueError("should be a list of whole numbers, or how many")
        return value

    @field_validator("ranks", mode="before")
    @classmethod
    def _ranks(cls, value: Any) -> Any:
        if value is None or isinstance(value, bool | list | dict) or (isinstance(value, str) and value != "clients"):
            raise ValueError("should be a whole number above 0, or 'clients'")
        return value

    @model_validator(mode="after")
    def _fits(self) -> SweepConfig:
        if (self.job is None) == (self.base is None):
            raise ValueError("give exactly one of 'job' (a job file) and 'base' (the job itself)")
        lengths = {key: len(values) for key, values in self.zipped.items()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{key} {length}" for key, length in lengths.items())
            raise ValueError(f"the lists under 'zip' must be of one length: {printable(listed, MAX_SHOWN)}")
        if math.prod(map(len, self._choices())) > MAX_RUNS:
            raise ValueError(f"its axes make more than {MAX_RUNS:,} runs, the most that a sweep may have")
        axes = self._keys()
        if len(axes) > MAX_AXES:
            raise ValueError(f"grid, zip and list set {len(axes)} keys; {MAX_AXES} are the most that a sweep may have")
        for (axis, key), (other_axis, other) in itertools.combinations(axes, 2):
            # Rows of a list are alternatives; values of different axes are set together.
            nested = f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")
            if nested and not axis == other_axis == "list":
                raise ValueError(
                    f"{shown(key)} ({axis}) and {shown(other)} ({other_axis}) set the same value: keep one of them"
                )
        return self

    def _keys(self) -> list[tuple[str, str]]:
        """Name of the axis and key, for each key that an axis sets."""
        axes = [("grid", key) for key in self.grid] + [("zip", key) for key in self.zipped]
        axes += [("list", key) for key in dict.fromkeys(key for row in self.points or [] for key in row)]
        return axes + ([("seeds", "seed")] if self.seeds is not None else [])

    def _choices(self) -> list[list[Overrides]]:
        """The alternatives of each axis."""
        axes: list[list[Overrides]] = [[{key: value} for value in values] for key, values in self.grid.items()]
        if self.zipped:
            axes.append([dict(zip(self.zipped, row, strict=True)) for row in zip(*self.zipped.values(), strict=True)])
        if self.points is not None:
            axes.append(self.points)
        if self.seeds is not None:
            axes.append([{"seed": s} for s in (range(self.seeds) if isinstance(self.seeds, int) else self.seeds)])
        return axes

    def combinations(self) -> Iterator[Overrides]:
        """All points of the product, the last axis (seeds) fastest."""
        for parts in itertools.product(*self._choices()):
            yield {key: value for part in parts for key, value in part.items()}


@dataclass(frozen=True)
class Run:
    """One run of a sweep."""

    id: str
    """`<slug>-<hash>`, the name of its folder."""
    former_id: str
    """Its id in older versions."""
    digest: str
    """Of the experiment; DONE.json of the finished run holds it."""
    job: JobConfig
    ranks: int
    overrides: Overrides
    """What distinguishes it from the other runs."""

    @property
    def label(self) -> str:
        """The overrides in one line."""
        return describe(self.overrides)


@dataclass(frozen=True)
class Expansion:
    """All runs of a sweep, with notes for the user."""

    runs: list[Run]
    notes: list[str]


def read_sweep(path: Path) -> SweepConfig:
    """Read a sweep file.

    Raises:
        ConfigError: it cannot be read, or a key or value is wrong; one line.
    """
    values = read_mapping(path, "not a sweep file, a mapping with 'name' and 'job'")
    return validated(SweepConfig, values, str(path))


class DataSource(Protocol):
    """Access to the data sets of a sweep."""

    def fingerprint(self, data: DataConfig) -> str:
        """Hash of a data set's content, 64 hexadecimal digits."""

    def with_end(self, job: JobConfig) -> JobConfig:
        """The job, with the end of its schedule stated if it comes from `stop`."""


def expand(sweep: SweepConfig, path: Path, data: DataSource) -> Expansion:
    """Return the runs of a sweep in the order of its axes, each validated.

    Args:
        sweep: the file's content.
        path: the file; its paths are relative to it, and errors name it.
        data: the jobs' data sets.

    Raises:
        ConfigError: a run is not a valid job; one line that names the run and the key.
    """
    base, base_path = _read_base(sweep, path)
    runs: dict[str, Run] = {}
    notes: list[str] = []
    used = [False] * len(sweep.exclude)
    num_points = num_excluded = 0
    for overrides in sweep.combinations():
        num_points += 1
        source = f"{printable(path)}: run {printable(describe(overrides) or 'of the base alone', 500)}"
        values = applied(base, overrides, source)
        written = [_matches(pattern, values) for pattern in sweep.exclude]
        if not any(written):
            job = _parse(values, overrides, path, base_path, source)
            whole = job.model_dump(mode="json")
            written = [_matches(pattern, whole) for pattern in sweep.exclude]
        used = [was or now for was, now in zip(used, written, strict=True)]
        if any(written):
            num_excluded += 1
            continue
        run = _run(sweep, job, overrides, data, source)
        if run.id in runs and run.job.stop != runs[run.id].job.stop:
            raise ConfigError(
                f"{source}: differs from run {runs[run.id].label or 'of the base alone'} in 'stop' alone, which is one "
                "run that trains on: keep the longest"
            )
        if run.id in runs:
            notes.append(f"{describe(overrides)} is the same experiment as {runs[run.id].label}: one run, {run.id}")
        runs.setdefault(run.id, run)
    notes += [
        f"exclude: {describe(pattern)} leaves out no run"
        for pattern, was_used in zip(sweep.exclude, used, strict=True)
        if not was_used
    ]
    if not runs:
        raise ConfigError(f"{path}: exclude leaves out all {num_points} runs")
    if num_excluded:
        notes.append(f"exclude leaves out {num_excluded} of {num_points} runs")
    return Expansion(list(runs.values()), notes)


def _read_base(sweep: SweepConfig, path: Path) -> tuple[dict[str, Any], Path]:
    """The mapping that all runs start from, and the file that its paths are relative to."""
    if sweep.base is not None:
        return {"name": sweep.name, **sweep.base}, path
    base_path = path.parent / (sweep.job or "")
    return read_mapping(base_path, JOB), base_path


def _parse(values: dict[str, Any], overrides: Overrides, path: Path, base_path: Path, source: str) -> JobConfig:
    anchors = base_path.parent, path.parent, overrides
    lookup = Lookup((base_path.parent, path.parent))
    return with_paths(parse_job(anchored(values, *anchors), source, lookup), *anchors)


def _run(sweep: SweepConfig, job: JobConfig, overrides: Overrides, data: DataSource, source: str) -> Run:
    if job.clients is None:
        raise ConfigError(f"{source}: clients: must be stated in a sweep, it is part of the experiment")
    ranks = job.clients if sweep.ranks == "clients" else sweep.ranks
    if ranks > job.clients:
        raise ConfigError(f"{source}: ranks: {ranks} for {job.clients} clients leaves some without work")
    try:
        job.resolved(ranks).local_batch_sizes()
        fingerprint = data.fingerprint(job.data)
        digest, former = data.with_end(job).digest(fingerprint), job.former_digest(fingerprint)
    except HpclbflError as error:
        raise ConfigError(f"{source}: {error}") from error
    return Run(f"{job.slug()}-{digest}", f"{job.slug()}-{former}", digest, job, ranks, overrides)


def applied(base: dict[str, Any], overrides: Overrides, source: str) -> dict[str, Any]:
    """Return a copy of the job with its values replaced, or added.

    Raises:
        ConfigError: a key path passes through a value that is not a mapping.
    """
    values = copy.deepcopy(base)
    refuse_undone(overrides, source)
    for key, value in overrides.items():
        set_value(values, key, copy.deepcopy(value), f"{source}: {printable(key, 200)}")
    return values


def _matches(pattern: Overrides, values: dict[str, Any]) -> bool:
    """Whether every key of the pattern has this value; of a mapping only the keys that it names are compared."""
    return all(_agrees(wanted, _get(values, key.split("."))) for key, wanted in pattern.items())


_NOTHING = object()


def _get(values: Any, keys: list[str]) -> Any:
    for key in keys:
        if not isinstance(values, dict) or key not in values:
            return _NOTHING
        values = values[key]
    return values


def _agrees(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(_agrees(wanted[key], found.get(key, _NOTHING)) for key in wanted)
    # In Python True == 1.
    return bool(wanted == found) and isinstance(wanted, bool) == isinstance(found, bool)


def describe(overrides: Overrides) -> str:
    """Return overrides in one line: `optimizer.lr=0.1 seed=2`."""
    return " ".join(f"{printable(key)}={dump(value, flow=True)}" for key, value in overrides.items())
