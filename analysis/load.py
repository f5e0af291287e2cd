"""Any folder of runs as tidy frames, attempts merged, read again only where files changed.

```
frames = load("runs/quickstart")
frames.evals.filter(split="test").group_by("run").last()
frames.steps.group_by("run").agg(pl.col("t_step_s").sum()).collect()
```
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import yaml

from hpclbfl.analysis.arms import with_arms
from hpclbfl.analysis.cache import Cache, CacheUnwritable, polars_schema
from hpclbfl.analysis.configs import config_columns, flatten
from hpclbfl.analysis.frames import RUN_COLUMNS, RUN_TYPES, Frames
from hpclbfl.analysis.scan import Found, find_runs, run_files, run_key
from hpclbfl.errors import DataError
from hpclbfl.runlog.reader import TornFile, read_file

CACHE_FOLDER = ".hpclbfl-cache"
"""Where a folder of runs keeps what was read of it; may be deleted at any time."""
NO_LIMIT = 2**62
"""Step that no run reaches."""


def load(directory: str | Path) -> Frames:
    """All runs at or below a folder.

    Rows of an attempt at or after the step from which a later one resumed are dropped, as `runlog.reader.merge` does.
    What was read is kept in DIR/.hpclbfl-cache; where that cannot be written (or DIR is itself a run), in a temporary
    folder for as long as the frames live.

    Raises:
        DataError: the folder is not there. A folder without runs gives empty frames.
    """
    root = Path(directory)
    runs = find_runs(root)
    files = {run_key(run, root): (run, run_files(run, root)) for run in runs}
    if runs != [root]:
        try:
            return _load(root, files, Cache(root / CACHE_FOLDER))
        except CacheUnwritable:
            pass
    temporary = TemporaryDirectory(prefix="hpclbfl-")
    return _load(root, files, Cache(Path(temporary.name)), temporary)


Files = dict[str, tuple[Path, list[Found]]]
"""By the run's key: its folder and its files."""


def _load(root: Path, files: Files, cache: Cache, keep_alive: Any = None) -> Frames:
    for _, found in files.values():
        for file in found:
            if cache.known(file) is None:
                _read(root, file, cache)
    cache.save(file.path for _, found in files.values() for file in found)
    keys = pl.Enum(list(files))
    problems: list[tuple[str, str, str, bool]] = []
    logs: list[tuple[str, int, int, int, int]] = []
    rows = []
    for key, (path, found) in files.items():
        rows.append(_run_row(key, path, found, cache, problems))
        logs += [(key, *log) for log in _kept_logs(key, found, cache, problems)]
    lost = {run for run, _, _, rows_lost in problems if rows_lost}
    for row in rows:
        row["complete"] = row["state"] == "done" and row["run"] not in lost
    columns = {"run": keys, "file": pl.UInt32(), "rank": pl.Int32(), "attempt": pl.Int32(), "limit": pl.Int64()}
    table = pl.DataFrame(logs, schema=columns, orient="row")
    found_rows = {name: _merged(cache, name, table) for name in ("steps", "evals", "layers", "plans", "events")}
    small = {name: found_rows[name].collect() for name in ("evals", "plans", "events")}
    return Frames(
        root=root,
        runs=_runs_frame(rows, keys),
        steps=found_rows["steps"].drop("attempt"),
        evals=small["evals"].sort("run", "step", "split", "attempt").drop("rank", "attempt"),
        layers=found_rows["layers"].drop("rank", "attempt"),
        plans=small["plans"].sort("run", "step", "client", "attempt").drop("rank", "attempt"),
        events=small["events"].drop("rank", "attempt").unique().sort("run", "step", "kind", "text"),
        problems=pl.DataFrame(
            problems,
            schema={"run": keys, "path": pl.String, "reason": pl.String, "rows_lost": pl.Boolean},
            orient="row",
        ),
        keep_alive=keep_alive,
    )


def _read(root: Path, file: Found, cache: Cache) -> None:
    path = root / file.path
    try:
        if file.kind == "log":
            log = read_file(path)
            cache.add_log(file, log.attributes, log.tables)
            return
        text = path.read_text(encoding="utf-8")
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        value = yaml.load(text, loader) if file.kind == "config" else json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("holds no mapping")
        cache.add(file, flatten(value) if file.kind == "config" else value)
    except TornFile as error:
        cache.add(file, None, error.reason)
    except DataError as error:
        cache.add(file, None, str(error).removeprefix(f"{path}: "))
    except (OSError, ValueError, yaml.YAMLError) as error:
        cache.add(file, None, f"cannot be read ({(str(error).splitlines() or [type(error).__name__])[0]})")


def _kept_logs(
    key: str, found: list[Found], cache: Cache, problems: list[tuple[str, str, str, bool]]
) -> list[tuple[int, int, int, int]]:
    """Number, rank, attempt and limit of every log that can be read: its rows of steps below the limit count."""
    attempts: dict[str, list[Found]] = {}
    for file in found:
        if file.attempt:
            attempts.setdefault(file.attempt, []).append(file)
    kept: list[tuple[int, int, int, int]] = []
    lost: list[tuple[str, str, str, bool]] = []
    limit = NO_LIMIT
    for number, files in reversed(list(enumerate(attempts.values()))):
        logs = [file for file in files if file.kind == "log"]
        resumed, bad = [], []
        for file in logs:
            entry = cache.entries[file.path]
            if entry.problem:
                bad.append((key, file.path, entry.problem, limit > 0))
                continue
            attributes = json.loads(entry.text)
            kept.append((entry.file, int(attributes.get("rank", -1)), number, limit))
            resumed.append(int(attributes.get("resumed_from_step", 0)))
        for file in files:
            num_ranks = _content(file, cache).get("num_ranks") if file.kind == "provenance" else None
            # An attempt that ended before its first step wrote no log at all; nothing is missing from it.
            if logs and num_ranks is not None and len(logs) < num_ranks:
                reason = f"{num_ranks - len(logs)} of {num_ranks} ranks left no log"
                bad.append((key, file.path.rpartition("/")[0], reason, limit > 0))
        lost = bad + lost
        limit = min([*resumed, limit])
    problems += lost
    return kept


def _content(file: Found | None, cache: Cache) -> dict[str, Any]:
    entry = cache.entries[file.path] if file else None
    return (json.loads(entry.text) or {}) if entry and not entry.problem else {}


def _run_row(
    key: str, path: Path, found: list[Found], cache: Cache, problems: list[tuple[str, str, str, bool]]
) -> dict[str, Any]:
    by_kind = {file.kind: file for file in found if file.kind != "provenance"}
    is_readable = "config" in by_kind and not cache.entries[by_kind["config"].path].problem
    status, done = _content(by_kind.get("status"), cache), _content(by_kind.get("done"), cache)
    provenance: dict[str, Any] = {}
    for file in found:
        if file.kind != "log" and (reason := cache.entries[file.path].problem):
            problems.append((key, file.path, reason, file.kind in ("config", "done")))
        elif file.kind == "provenance":
            provenance = _content(file, cache) or provenance
    is_done = "done" in by_kind and not cache.entries[by_kind["done"].path].problem
    state = "done" if is_done else str(status.get("state", "unknown"))
    versions, git = provenance.get("versions") or {}, provenance.get("git") or {}
    argv, gpus = provenance.get("argv") or [], provenance.get("gpus") or []
    return {
        **{name: provenance.get(name) for name in RUN_COLUMNS},
        "run": key,
        "path": str(path),
        "state": state if is_readable else "unreadable",
        "error": status.get("error") if state == "failed" else None,
        "reason": done.get("reason"),
        "hash": provenance.get("hash") or done.get("hash"),
        "num_attempts": len({file.attempt for file in found if file.attempt}),
        "elapsed_s": done.get("elapsed_s"),
        "cpu": (provenance.get("cpu") or {}).get("model"),
        "gpus": ", ".join(map(str, gpus)) or None,
        "torch": versions.get("torch"),
        "horovod": versions.get("horovod"),
        "commit": git.get("commit"),
        "dirty": git.get("dirty"),
        "command": " ".join(map(str, argv)) or None,
        "config": _content(by_kind.get("config"), cache),
    }


def _runs_frame(rows: list[dict[str, Any]], keys: pl.Enum) -> pl.DataFrame:
    about = [
        pl.Series(name, [row[name] for row in rows], dtype=RUN_TYPES.get(name, pl.String()), strict=False)
        for name in RUN_COLUMNS
        if name not in ("run", "arm")
    ]
    run = pl.Series("run", [row["run"] for row in rows], dtype=keys)
    return with_arms(pl.DataFrame([run, *about, *config_columns([row["config"] for row in rows], RUN_COLUMNS)]))


def _merged(cache: Cache, table: str, logs: pl.DataFrame) -> pl.LazyFrame:
    return (
        cache.scan(table)
        .join(logs.lazy(), on="file", how="inner")
        .filter(pl.col("step") < pl.col("limit"))
        .select("run", "rank", "attempt", *polars_schema(table))
    )
