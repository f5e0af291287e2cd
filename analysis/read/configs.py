"""Jobs as flat columns (`optimizer.lr`, `sync.kind`), one per key that any run has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import polars as pl

from hpclbfl.config.part_names import brief
from hpclbfl.core.text import printable

KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
"""A key of a job or of a section."""
MAX_DEPTH = 8
"""Of nested sections."""

Config = Mapping[str, Any]
"""A flat job: dotted keys; numbers, booleans, texts or None. Lists are compact JSON texts."""


def flatten(config: Mapping[str, Any], prefix: str = "", depth: int = MAX_DEPTH) -> dict[str, Any]:
    """A job as dotted keys; lists, and mappings whose keys are not names, become compact JSON.

    Texts, and integers beyond 64 bits, become one line without control characters (see `core.text.printable`).
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if depth and isinstance(value, Mapping) and value and all(_is_key(inner) for inner in value):
            flat |= flatten(value, f"{name}.", depth - 1)
        elif isinstance(value, list | tuple | Mapping):
            flat[name] = printable(json.dumps(value, separators=(",", ":"), default=str, skipkeys=True))
        elif value is None or isinstance(value, bool | float) or (isinstance(value, int) and _fits(value)):
            flat[name] = value
        else:
            flat[name] = printable(value)
    return flat


def _is_key(key: object) -> bool:
    return isinstance(key, str) and KEY.fullmatch(key) is not None


def _fits(value: int) -> bool:
    return -(2**63) <= value < 2**63


def column(name: str, values: Sequence[Any]) -> pl.Series:
    """A column of the narrowest type that holds all values: Boolean, Int64, Float64 or String; None becomes null.

    Without any value the type is String.
    """
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pl.Series(name, values, dtype=pl.Boolean)
    if kinds == {int} and all(value is None or _fits(value) for value in values):
        return pl.Series(name, values, dtype=pl.Int64)
    if kinds and kinds <= {int, float}:
        return pl.Series(name, [None if value is None else float(value) for value in values], dtype=pl.Float64)
    return pl.Series(name, [None if value is None else as_text(value) for value in values], dtype=pl.String)


def config_columns(configs: Sequence[Config], taken: Iterable[str] = ()) -> list[pl.Series]:
    """One column per key of any config, by section, in order of first occurrence; null: a run does not have the key.

    A key that is among the names `taken` gets the prefix `config.`. A section that is null in some runs and has keys in
    others has no column of its own.
    """
    keys = list(dict.fromkeys(key for config in configs for key in config))
    sections = list(dict.fromkeys(key.partition(".")[0] for key in keys))
    keys.sort(key=lambda key: sections.index(key.partition(".")[0]))
    parents = {key[:place] for key in keys for place, sign in enumerate(key) if sign == "."}
    names: dict[str, str] = {}
    used = set(taken)
    for key in keys:
        names[key] = key if key not in used else f"config.{key}"
        while names[key] in used:
            names[key] = f"config.{names[key]}"
        used.add(names[key])
    columns = [column(names[key], [config.get(key) for config in configs]) for key in keys]
    return [c for key, c in zip(keys, columns, strict=True) if key not in parents or c.null_count() < len(c)]


def as_text(value: Any) -> str:
    """A value as a job file would show it: `true`, `0.1`, `bsp`; `none` for None."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return format(value, "g") if isinstance(value, float) else str(value)


def describe_data(config: Config) -> str:
    """Name of the data set, `cifar10`; empty if a job has neither its name nor its path.

    The same as `DataConfig.title`, without loading the job models.
    """
    name, path = config.get("data.name"), config.get("data.path")
    return PurePath(str(path)).stem if path and name in (None, "packed") else brief(str(name or ""))


def describe_sync(config: Config) -> str:
    """The synchroniser in a few words, with H if it has one: `bsp`, `fedavg H=250`, `fedavg H=1 ep`."""
    kind = str(config.get("sync.kind") or "bsp")
    if config.get("sync.local_steps") is not None:
        return f"{kind} H={as_text(config['sync.local_steps'])}"
    if config.get("sync.local_epochs") is not None:
        return f"{kind} H={as_text(config['sync.local_epochs'])} ep"
    return kind


def describe_partition(config: Config) -> str:
    """The partition in a few words: `iid`, `iid reshuffled`, `1 label/client`, `dirichlet 0.1`."""
    kind = brief(str(config.get("partition.kind") or "iid"))
    if kind == "labels_per_client":
        labels = config.get("partition.labels")
        return f"{as_text(labels)} label{'' if labels == 1 else 's'}/client"
    if config.get("partition.reshuffle") is True:
        return f"{kind} reshuffled"
    alpha = config.get("partition.alpha")
    return kind if alpha is None else f"{kind} {as_text(alpha)}"
