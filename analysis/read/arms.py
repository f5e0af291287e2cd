"""Arms: sets of runs whose jobs differ only in the seed, labelled by the keys that distinguish them.

Keys that are not part of a run's hash do not distinguish arms: `name`, where the data are (their fingerprint is used
instead) and how they are read, the engine, checkpoints. Runs of equal jobs and equal seeds that were started on
different numbers of ranks or by different engines (a scaling study) are arms of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl

from hpclbfl.analysis.read.configs import as_text, describe_data, describe_partition, describe_sync
from hpclbfl.analysis.read.frames import config_names
from hpclbfl.core.text import printable

DATA_KEY = "data_fingerprint"
_IGNORED_KEYS = ("seed", "name", "data.path", "data.download", "data.workers", "data.in_memory")
_IGNORED_SECTIONS = ("checkpoint", "comm")
_EXECUTION = ("engine", "num_ranks")
_IS_READABLE = pl.col("state") != "unreadable"
_DESCRIBED = {"sync": describe_sync, "partition": describe_partition}
_LONG = 24
"""Characters of a value in a label, at most."""
_MAX_TEXT = 80
"""Characters of a value that stands without its key, at most."""
_MAX_LABEL = 300
"""Characters of a label, at most."""

SHORT_NAMES: dict[str, str] = {
    "gradients.scaler.factor": "X",
    "gradients.scaler.threshold": "threshold",
    "gradients.scaler.when": "when",
    "gradients.scaler.duty": "duty",
    "batching.local_batch_size": "b",
    "batching.global_batch_size": "B",
    DATA_KEY: "data",
    "num_ranks": "ranks",
}
"""Names of keys in labels, where the literature has a shorter one than the job file."""


def with_arms(runs: pl.DataFrame) -> pl.DataFrame:
    """The frame `runs` (see `frames`) with the column `arm`: an Enum of labels, null for runs that cannot be read.

    If no job has a seed, all get the seed 0. Arms are sorted by the values of the keys that distinguish them, in the
    order of the job file; null and small values come first.
    """
    if "seed" not in runs.columns or runs["seed"].null_count() == len(runs):
        runs = runs.with_columns(seed=pl.lit(0, pl.Int64))
    keys = [
        key for key in config_names(runs) if key not in _IGNORED_KEYS and key.partition(".")[0] not in _IGNORED_SECTIONS
    ]
    keys = [DATA_KEY, *keys]
    keyed = runs.filter(_IS_READABLE).with_columns(data_key(runs))
    is_scaling = (pl.len().over(*keys, "seed") > 1).any().over(*keys)
    keyed = keyed.with_columns(pl.when(is_scaling).then(pl.col(name)).alias(name) for name in _EXECUTION)
    apart = [key for key in (*keys, *_EXECUTION) if keyed[key].n_unique() > 1]
    arms = keyed.unique(apart or [pl.lit(0)], keep="first", maintain_order=True).sort(apart, nulls_last=False)
    titles = data_titles(runs)
    rows = [{**row, DATA_KEY: titles.get(row[DATA_KEY])} for row in arms.rows(named=True)]
    # Among keys that distinguish arms equally well, the model says most and the hash of the data least.
    labels = _labels(rows, sorted(apart, key=lambda key: (key != "model.name", key == DATA_KEY)))
    arms = arms.select(*apart, pl.Series("arm", labels, dtype=pl.Enum(labels)))
    if apart:
        found = keyed.select("run", *apart).join(arms, on=apart, how="left", nulls_equal=True)
    else:
        found = keyed.select("run").join(arms, how="cross")
    return runs.join(found.select("run", "arm"), on="run", how="left", maintain_order="left")


def data_key(runs: pl.DataFrame) -> pl.Expr:
    """Identity of the data, as the column DATA_KEY: their fingerprint.

    For a run without one, which has not started: that of other runs on the same path, else the path.
    """
    known = pl.col(DATA_KEY).cast(pl.String)
    if "data.path" not in runs.columns:
        return known
    path = pl.col("data.path").cast(pl.String)
    others = pl.when(known.n_unique().over(path) <= 2).then(known.drop_nulls().first().over(path))
    return pl.coalesce(known, pl.when(path.is_not_null()).then(others), path).alias(DATA_KEY)


def data_titles(runs: pl.DataFrame) -> dict[str | None, str]:
    """Titles of the data by their key: the name of the set or of the packed file.

    If two have the same name, the first digits of the key are added.
    """
    names = [pl.col(name).cast(pl.String) for name in ("data.name", "data.path") if name in runs.columns]
    found: dict[str | None, str] = {}
    for row in runs.select(data_key(runs), *names).unique(DATA_KEY, keep="first", maintain_order=True).rows(named=True):
        key, title = row[DATA_KEY], describe_data(row)
        found[key] = f"{title} {str(key)[:6]}".strip() if not title or title in found.values() else title
    return found


def differing_keys(runs: pl.DataFrame) -> list[str]:
    """Keys of the job (and `num_ranks`, `engine`) that differ between runs, in the order of the job file.

    Paths of data are left out, and so is the name if each arm has one name.
    """
    readable = runs.filter(_IS_READABLE)
    keys = [key for key in (*config_names(runs), *_EXECUTION) if key not in ("data.path", "data.download")]
    keys = [key for key in keys if readable[key].n_unique() > 1]
    if "name" in keys and readable.select("name", "arm").n_unique() == readable["arm"].n_unique():
        keys.remove("name")
    return keys


def short_name(key: str) -> str:
    """A key of the job in labels and table heads: `lr` for `optimizer.lr`, `sync` for `sync.kind`."""
    if key in SHORT_NAMES:
        return SHORT_NAMES[key]
    section, _, last = key.rpartition(".")
    return section.rpartition(".")[2] if last in ("kind", "name") and section else last


def _labels(arms: Sequence[dict[str, Any]], keys: Sequence[str]) -> list[str]:
    """One label per arm, all different, from as few keys as distinguish them."""
    columns: dict[str, list[str]] = {}
    for section, describe in _DESCRIBED.items():
        if any(key.startswith(f"{section}.") for key in keys):
            columns[section] = [describe(arm) for arm in arms]
    columns |= {key: [as_text(arm[key]) for arm in arms] for key in keys}
    if len(arms) == 1:
        return [printable(as_text(arms[0].get("name") or "all runs"), _MAX_LABEL)]
    chosen = sorted(_distinguishing(columns, len(arms)), key=lambda key: _place(key, keys))
    labels: dict[str, None] = {}
    for i in range(len(arms)):
        parts = [_part(key, columns[key][i]) for key in chosen]
        # An absent section is named once, however many of its keys were chosen.
        whole = ", ".join(p for n, p in enumerate(parts) if not (p.startswith("no ") and p in parts[:n]))
        label = whole = printable(whole, _MAX_LABEL)
        number = 1
        while label in labels:
            number += 1
            label = f"{whole} #{number}"
        labels[label] = None
    return list(labels)


def _place(key: str, keys: Sequence[str]) -> int:
    """Position of a key; that of a described section is the position of its first key."""
    return min(place for place, known in enumerate(keys) if known == key or known.startswith(f"{key}."))


def _distinguishing(columns: dict[str, list[str]], count: int) -> list[str]:
    """Greedily, the columns that split the rows into most groups; of equally good ones the earlier."""
    chosen: list[str] = []
    groups: list[tuple[str, ...]] = [()] * count
    while len(set(groups)) < count:

        def finer(key: str, groups: Iterable[tuple[str, ...]] = tuple(groups)) -> int:
            return len({(*group, text) for group, text in zip(groups, columns[key], strict=True)})

        best = max(columns, key=finer)
        if finer(best) == len(set(groups)):
            break
        chosen.append(best)
        groups = [(*group, text) for group, text in zip(groups, columns[best], strict=True)]
    return chosen


def _part(key: str, text: str) -> str:
    if text == "none" and key.count(".") > 1:
        return f"no {key.split('.')[-2]}"
    if key in _DESCRIBED or (text[:1].isalpha() and text not in ("none", "true", "false")):
        text = printable(text, _MAX_TEXT)
        return f"data {text}" if key == DATA_KEY else text
    return f"{short_name(key)}={text if len(text) <= _LONG else text[:_LONG] + '...'}"
