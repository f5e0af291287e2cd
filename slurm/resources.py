"""What a run requests from the cluster: `resources` of a sweep, and cluster profiles.

A profile is code: it names modules, shell lines and arguments of the launcher. A sweep is not: it requests numbers and
single words of a safe alphabet, and only those flags of sbatch that run nothing.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StringConstraints, field_validator, model_validator

from hpclbfl.config.sections import Section
from hpclbfl.config.sections.base import Whole
from hpclbfl.config.validation import validated
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.text import printable, shown
from hpclbfl.core.yamlfile import read_mapping

PROFILES = Path(__file__).with_name("clusters")

_WORD = r"[A-Za-z0-9_.,:;?!+@=&|*^/()\[\]-]{1,200}"
# No white space, no quotes, and nothing that a shell expands within double quotes.
Word = Annotated[str, StringConstraints(pattern=f"^{_WORD}$")]
_KEY = re.compile("[a-z][a-z0-9-]{1,40}")

# Flags that this package sets itself, from keys of the same meaning.
_OWN_FLAGS = frozenset(
    (
        *("array", "nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "mem", "time", "partition"),
        *("account", "constraint", "signal", "output", "error", "open-mode", "job-name", "requeue", "no-requeue"),
        "dependency",
    )
)
# Further flags that a sweep may set. Flags that run something, read files or change the environment or the folder of a
# job (export, wrap, chdir, get-user-env ...) belong in a profile.
_HARMLESS_FLAGS = frozenset(
    (
        *("begin", "comment", "contiguous", "core-spec", "cores-per-socket", "cpu-freq", "deadline", "delay-boot"),
        *("exclude", "exclusive", "gpu-bind", "gpu-freq", "gpus", "gpus-per-socket", "gpus-per-task", "gres"),
        *("gres-flags", "hint", "hold", "licenses", "mail-type", "mail-user", "mem-bind", "mem-per-cpu"),
        *("mem-per-gpu", "mincpus", "network", "nice", "no-kill", "nodelist", "overcommit", "oversubscribe", "prefer"),
        *("priority", "qos", "reservation", "sockets-per-node", "spread-job", "switches", "threads-per-core"),
        *("time-min", "tmp", "tres-per-task", "use-min-nodes", "wait-all-nodes"),
    )
)
_READ_HERE = frozenset(("kind", "max_parallel", "cpus_per_rank", "launcher_args"))
"""Keys of a profile that kind local reads."""
_PROFILE_ALONE = ("launcher_args", "modules", "setup", "launcher")
"""Keys that run programs, so that only a profile may have them."""
_TIME = re.compile(r"(?:(?P<days>[0-9]{1,5})-)?(?P<fields>[0-9]{1,9}(?::[0-9]{1,9}){0,2})")
_MEMORY = re.compile("[1-9][0-9]{0,14}[KMGT]?")
_Few = Annotated[Whole, Field(gt=0, le=1_000_000)]


class _Wanted(Section):
    """Keys that a profile and a sweep have in common."""

    nodes: _Few | None = None
    """Nodes that the ranks are spread over; by default as few as `ranks_per_node` allows, or the sum over the node
    types."""
    ranks_per_node: _Few | None = None
    """Most ranks on a node, such as its number of GPUs; null: all."""
    gpus_per_rank: Annotated[Whole, Field(ge=0, le=10_000)] | None = None
    """GPUs for each rank."""
    cpus_per_rank: _Few | None = None
    """Cores for each rank, which are also its number of threads."""
    memory: str | None = None
    """Per node, as sbatch takes it: 16G."""
    time: str | None = None
    """Time limit of one job, as sbatch takes it: 90 (minutes), 1:30:00, 2-00:00:00. A run that needs longer is requeued
    and resumes."""
    partition: Word | None = None
    """Slurm's partition."""
    account: Word | None = None
    """Slurm's account."""
    constraint: Word | dict[Word, _Few] | None = None
    """As sbatch takes it, or node types with the number of nodes of each: {a100: 1, v100: 2}."""
    sbatch: dict[str, Word | int | StrictBool] = Field(default_factory=dict)
    """Further flags of sbatch, without dashes: {qos: long, exclusive: true}."""

    @field_validator("memory", "time", mode="before")
    @classmethod
    def _number_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("memory")
    @classmethod
    def _is_memory(cls, value: str | None) -> str | None:
        if value is not None and not _MEMORY.fullmatch(value):
            raise ValueError("give a number with K, M, G or T, such as 16G")
        return value

    @field_validator("time")
    @classmethod
    def _is_time(cls, value: str | None) -> str | None:
        if value is not None and (not _TIME.fullmatch(value) or minutes(value) < 1):
            raise ValueError("give minutes (90), hours:minutes:seconds (1:30:00) or days-hours:minutes:seconds")
        return value

    @field_validator("partition", "account", mode="before")
    @classmethod
    def _is_word(cls, value: Any) -> Any:
        return value if value is None else _word(value)

    @field_validator("constraint", mode="before")
    @classmethod
    def _word_or_nodes(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for kind in value:
                _word(kind, f"{shown(kind)} ")
            return value
        return value if value is None else _word(value)

    @field_validator("sbatch", mode="before")
    @classmethod
    def _are_flags(cls, flags: Any) -> Any:
        if not isinstance(flags, dict):
            raise ValueError("should be a mapping of sbatch's flags, such as {qos: long, exclusive: true}")
        named: dict[str, Any] = {}
        for key, value in flags.items():
            name = str(key).replace("_", "-")
            if not _KEY.fullmatch(name) or name in named:
                raise ValueError(f"{shown(key)} is no flag of sbatch, or is given twice")
            # sbatch accepts any unambiguous prefix of a flag.
            if any(own.startswith(name) for own in _OWN_FLAGS):
                raise ValueError(f"{shown(key)} is set from the other keys (nodes, memory, time, signal_s ...)")
            if not isinstance(value, bool | int):
                _word(value, f"{shown(key)} ")
            named[name] = value
        return named

    @model_validator(mode="after")
    def _nodes_of_types(self) -> _Wanted:
        if isinstance(self.constraint, dict) and self.nodes not in (None, sum(self.constraint.values())):
            raise ValueError(f"'nodes: {self.nodes}' is not the sum of the nodes in 'constraint'")
        return self


def _word(value: Any, what: str = "") -> Any:
    if not isinstance(value, str) or not re.fullmatch(_WORD, value):
        raise ValueError(f"{what}should be one word of letters, digits and _.,:;?!+@=&|*^/()[]-")
    return value


class ResourcesConfig(_Wanted):
    """What one run requests; null: the profile's value, or else the cluster's default."""

    @model_validator(mode="before")
    @classmethod
    def _runs_nothing(cls, values: Any) -> Any:
        for key in _PROFILE_ALONE:
            if isinstance(values, dict) and key in values:
                raise ValueError(f"'{key}' runs programs, so only a cluster profile (--cluster) may set it")
        return values

    @field_validator("sbatch")
    @classmethod
    def _are_harmless(cls, flags: dict[str, Any]) -> dict[str, Any]:
        for key in flags:
            if key not in _HARMLESS_FLAGS:
                harmless = ", ".join(sorted(_HARMLESS_FLAGS))
                raise ValueError(
                    f"'{key}' may only be set in a cluster profile (--cluster); a sweep may set {harmless}"
                )
        return flags


class ProfileConfig(_Wanted):
    """A cluster: how it starts MPI ranks, and what is requested unless a sweep says otherwise.

    A profile is code: it decides which programs are run.
    """

    kind: Literal["slurm", "local"] = "slurm"
    """local: this machine, without a scheduler."""
    launcher: Literal["srun", "mpirun"] = "srun"
    """srun: each task of the job is a rank; mpirun: mpirun starts the ranks inside the allocation."""
    launcher_args: tuple[str, ...] = ()
    """Further arguments of the launcher, srun or mpirun."""
    modules: tuple[str, ...] = ()
    """Modules that the job loads first."""
    setup: tuple[str, ...] = ()
    """Shell lines that the job runs next."""
    max_parallel: _Few | None = None
    """Most runs at a time, over all arrays of one submission; null: no limit on a cluster, one on this machine."""
    signal_s: Annotated[Whole, Field(gt=0, le=65535)] = 120
    """Seconds before the time limit of a job at which its run is asked to save its state and is requeued."""
    retries: Annotated[Whole, Field(ge=0, le=1_000_000)] = 2
    """How often in a row a run that fails without progress is started again."""

    @model_validator(mode="after")
    def _signal_before_end(self) -> ProfileConfig:
        if self.kind == "slurm" and self.time is not None and 2 * self.signal_s > 60 * minutes(self.time):
            raise ValueError(
                f"'signal_s: {self.signal_s}' is more than half of 'time: {self.time}': no run would get anywhere"
            )
        return self

    def merged(self, wanted: ResourcesConfig, source: str) -> ProfileConfig:
        """The profile, overridden by a sweep's `resources`; `source` names the sweep in errors."""
        requested = {key: value for key, value in wanted.model_dump().items() if value not in (None, {}, ())}
        mine = self.model_dump()
        if "constraint" in requested:
            mine["nodes"] = None
        requested["sbatch"] = {**mine["sbatch"], **requested.get("sbatch", {})}
        return validated(ProfileConfig, {**mine, **requested}, source)

    def num_nodes(self, ranks: int) -> int:
        """Nodes for this many ranks."""
        types = self.constraint if isinstance(self.constraint, dict) else {}
        return self.nodes or sum(types.values()) or math.ceil(ranks / (self.ranks_per_node or ranks))


def minutes(time: str) -> int:
    """Return sbatch's time in minutes, rounded up."""
    found = _TIME.fullmatch(time)
    if found is None:
        raise ConfigError(f"time {shown(time)}: give minutes (90), 1:30:00 or 1-12:00:00")
    fields = [int(field) for field in found["fields"].split(":")]
    if found["days"] is not None:
        hours, mins, secs = [*fields, 0, 0][:3]
        return int(found["days"]) * 1440 + hours * 60 + mins + math.ceil(secs / 60)
    hours, mins, secs = {1: [0, *fields, 0], 2: [0, *fields], 3: fields}[len(fields)]
    return hours * 60 + mins + math.ceil(secs / 60)


def load_profile(name: str) -> ProfileConfig:
    """Read a profile: one of the package by its name, any other by its path.

    Raises:
        ConfigError: it does not exist, or a key or value is wrong.
    """
    known = {path.stem: path for path in sorted(PROFILES.glob("*.yaml"))}
    path = known.get(name) or Path(name)
    if name not in known and path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"--cluster {printable(name)}: no such profile: {', '.join(known)}, or the path of a .yaml file"
        )
    profile = validated(ProfileConfig, read_mapping(path, "not a cluster profile, a mapping"), str(path))
    unread = sorted(profile.model_fields_set - _READ_HERE) if profile.kind == "local" else []
    if unread:
        raise ConfigError(f"{printable(path)}: '{unread[0]}' goes with kind slurm, not local")
    return profile
