"""From a sweep to its runs: every combination of the axes, validated, with an id that is derived from its job.

Reads the job file; the caller provides access to the data.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hpclbfl.config.job import JOB, JobConfig, parse_job, with_paths
from hpclbfl.config.own_parts import Lookup
from hpclbfl.config.part_names import anchored
from hpclbfl.config.sections import DataConfig
from hpclbfl.core.errors import ConfigError, HpclbflError
from hpclbfl.core.text import printable
from hpclbfl.core.yamlfile import read_mapping, refuse_undone, set_value
from hpclbfl.slurm.sweep_file import Overrides, SweepConfig, describe


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
        source = f"{printable(path)}: run {printable(describe(overrides) or 'of the base job', 500)}"
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
                f"{source}: differs from run {runs[run.id].label or 'of the base job'} only in 'stop', so that they "
                "are one run: keep the longest"
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
