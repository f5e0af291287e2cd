"""The sweep file: a job and the axes along which its runs differ.

Axes combine as a product: each key of `grid`, the rows of `zip`, the rows of `list`, and `seeds`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from hpclbfl.config.job import MAX_CLIENTS
from hpclbfl.config.sections import Section
from hpclbfl.config.sections.base import Name, PathText, Seed, Whole
from hpclbfl.config.validation import validated
from hpclbfl.core.text import MAX_SHOWN, printable, shown
from hpclbfl.core.yamlfile import read_mapping
from hpclbfl.core.yamltext import dump
from hpclbfl.slurm.resources import ResourcesConfig

Overrides = dict[str, Any]
"""key.path -> value; a mapping as value replaces the whole section."""
Rows = Annotated[list[Any], Field(min_length=1)]
MAX_RUNS, MAX_AXES = 20_000, 1000
"""Most runs of a sweep before `exclude`, and most keys that its axes set."""


class SweepConfig(Section):
    """A sweep file."""

    name: Annotated[Name, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the folder, `runs/<name>`."""
    job: PathText | None = None
    """The job file that all runs start from, relative to the sweep file."""
    base: dict[str, Any] | None = None
    """The job itself, instead of a job file."""
    grid: dict[str, Rows] = Field(default_factory=dict)
    """key.path -> values; every combination."""
    zipped: dict[str, Rows] = Field(default_factory=dict, alias="zip")
    """key.path -> values, all of one length: the first of each, the second of each, and so on."""
    points: list[Overrides] | None = Field(default=None, alias="list", min_length=1)
    """Mappings of key.path -> value, one after the other."""
    seeds: Annotated[Whole, Field(gt=0, le=MAX_RUNS)] | list[Seed] | None = None
    """A number of seeds, from 0; or a list of seeds."""
    exclude: list[Overrides] = Field(default_factory=list, max_length=MAX_AXES)
    """Mappings of key.path -> value: a run that matches all keys of one of them is left out."""
    ranks: Annotated[Whole, Field(gt=0, le=MAX_CLIENTS)] | Literal["clients"] = 1
    """MPI ranks of each run; clients: one per client."""
    resources: ResourcesConfig = ResourcesConfig()
    """What each run requests from the cluster; the profile decides about keys that are left out."""

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


def read_sweep(path: Path) -> SweepConfig:
    """Read a sweep file.

    Raises:
        ConfigError: it cannot be read, or a key or value is wrong; one line.
    """
    values = read_mapping(path, "not a sweep file, a mapping with 'name' and 'job'")
    return validated(SweepConfig, values, str(path))


def describe(overrides: Overrides) -> str:
    """Return overrides in one line: `optimizer.lr=0.1 seed=2`."""
    return " ".join(f"{printable(key)}={dump(value, flow=True)}" for key, value in overrides.items())
