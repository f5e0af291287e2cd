"""Any folder of runs as tidy frames: attempts merged, and only changed files read again.

```
frames = load("runs/quickstart")
frames.evals.filter(split="test").group_by("run").last()
frames.steps.group_by("run").agg(pl.col("t_step_s").sum()).collect()
```
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from hpclbfl.analysis.read.arms import with_arms
from hpclbfl.analysis.read.cache import Cache, CacheUnusable
from hpclbfl.analysis.read.configs import config_columns
from hpclbfl.analysis.read.frames import RUN_COLUMNS, RUN_TYPES, Frames, log_schema
from hpclbfl.analysis.read.records import read_plain
from hpclbfl.analysis.read.scan import Found, Kind, find_runs, run_files, run_keys
from hpclbfl.config.part_names import HASH_DIGITS
from hpclbfl.core.diagnostics import Diagnostics
from hpclbfl.core.errors import HpclbflError
from hpclbfl.core.text import printable
from hpclbfl.runs.lock import LOST, find_lost
from hpclbfl.runs.log.coverage import NO_LIMIT, Attempt, LogSpan, Problem, find_limits, find_problems, row_limit
from hpclbfl.runs.log.reader import TornFile, read_attempt_log
from hpclbfl.runs.log.schema import TABLES

logger = Diagnostics(__name__)

CACHE_FOLDER = ".hpclbfl-cache"
"""Folder within a folder of runs for what was read of it; may be deleted at any time."""


def load(directory: str | Path) -> Frames:
    """All runs at or below a folder.

    `runs.log.coverage` decides which rows count and which are missing, as for `runs.log.reader.read_run`. A run whose
    files cannot be read, or hold what no run writes, has a line in `problems`; other runs are not affected. What was
    read is kept in DIR/.hpclbfl-cache, or, if that cannot be used (`notes` says why) or DIR is itself a run, in a
    temporary folder for as long as the frames live.

    Raises:
        DataError: there is no such folder. A folder without runs gives empty frames.
    """
    root = Path(directory)
    notes: list[str] = []
    runs = find_runs(root, notes)
    files = {key: (run, run_files(run, root)) for key, run in run_keys(runs, root).items()}
    if runs not in ([], [root]):
        folder = root / CACHE_FOLDER
        try:
            return _load(root, files, Cache(folder), notes)
        except CacheUnusable as unusable:
            notes.append(f"{folder}: {unusable}; without it all logs are read each time")
    temporary = TemporaryDirectory(prefix="hpclbfl-")
    return _load(root, files, Cache(Path(temporary.name)), notes, temporary)


Files = dict[str, tuple[Path, list[Found]]]
"""By key of the run: its folder and its files."""


def _load(root: Path, files: Files, cache: Cache, notes: list[str], keep_alive: Any = None) -> Frames:
    all_files = [file for _, found in files.values() for file in found]
    unknown = [file for file in all_files if cache.known(file) is None]
    with logger.timing(f"{root}: {len(files)} runs, read {len(unknown)} of {len(all_files)} files, the others kept"):
        for file in unknown:
            _read(root, file, cache)
    cache.save(file.path for file in all_files)
    keys = pl.Enum(list(files))
    problems: list[tuple[str, str, str, bool]] = []
    logs: list[tuple[str, int, int, int, int]] = []
    rows: list[dict[str, Any]] = []
    folders: list[Path] = []
    for key, (path, found) in files.items():
        own = {file.kind: _content(file, cache) for file in found if not file.attempt}
        attempts = _attempts(found, cache)
        wrong = _unreadable(path.relative_to(root).as_posix(), found, cache)
        wrong += find_problems((path / "attempts").relative_to(root).as_posix(), attempts, own.get("done"))
        row = _run_row(key, path, own, attempts)
        row["complete"] = row["state"] == "done" and not any(problem.rows_lost for problem in wrong)
        rows.append(row)
        folders.append(path)
        problems += [(key, printable(problem.path), printable(problem.reason), problem.rows_lost) for problem in wrong]
        logs += [(key, *log) for log in _kept_logs(attempts, cache)]
    _end_lost(rows, folders)
    columns = {"run": keys, "log": pl.Int64(), "rank": pl.Int32(), "attempt": pl.Int32(), "limit": pl.Int64()}
    table = pl.DataFrame(logs, schema=columns, orient="row")
    found_rows = {name: _merged(cache, name, table) for name in TABLES}
    small = {name: found_rows[name].collect() for name in ("evals", "plans", "events", "metrics")}
    return Frames(
        root=root,
        runs=_runs_frame(rows, keys),
        steps=found_rows["steps"].drop("attempt"),
        evals=small["evals"].sort("run", "step", "split", "attempt").drop("rank", "attempt"),
        layers=found_rows["layers"].drop("rank", "attempt"),
        plans=small["plans"].sort("run", "step", "client", "attempt").drop("rank", "attempt"),
        events=small["events"].drop("rank", "attempt").unique().sort("run", "step", "kind", "text"),
        metrics=small["metrics"].sort("run", "step", "client", "name", "attempt").drop("rank", "attempt"),
        problems=pl.DataFrame(
            problems,
            schema={"run": keys, "path": pl.String, "reason": pl.String, "rows_lost": pl.Boolean},
            orient="row",
        ),
        notes=tuple(notes),
        keep_alive=keep_alive,
    )


def _read(root: Path, file: Found, cache: Cache) -> None:
    path = root / file.path
    try:
        if file.kind == "folder":
            cache.add(file, None, "cannot be listed")
        elif file.kind != "log":
            cache.add(file, read_plain(path, file.kind))
        elif not file.is_regular:
            cache.add(file, None, "is not a regular file")
        else:
            cache.add_log(file, read_attempt_log(path))
    except TornFile as error:
        cache.add(file, None, error.reason)
    except FileNotFoundError:
        cache.add(file, None, "is not there any more")
    except HpclbflError as error:
        # Only the reason, which may begin with the line number of a text file: the name is shown beside it.
        reason = str(error).removeprefix(str(path)).removeprefix(": ")
        cache.add(file, None, f"line {reason[1:]}" if reason.startswith(":") else reason)


def _attempts(found: list[Found], cache: Cache) -> list[Attempt]:
    """The attempts of a run, the oldest first."""
    logs: dict[str, list[LogSpan]] = {}
    provenance: dict[str, dict[str, Any]] = {}
    folders = {file.attempt: file.path.rpartition("/")[0] for file in found if file.attempt}
    for file in found:
        if file.kind == "provenance":
            provenance[file.attempt] = _content(file, cache) or {}
        elif file.kind == "log":
            about, problem = _content(file, cache) or {"start": 0, "end": 0}, cache.entries[file.path].problem
            span = LogSpan(file.path, about["start"], about["end"], problem)
            logs.setdefault(file.attempt, []).append(span)
    return [Attempt(path, logs.get(name, []), provenance.get(name, {})) for name, path in folders.items()]


def _kept_logs(attempts: list[Attempt], cache: Cache) -> list[tuple[int, int, int, int]]:
    """Number, rank, attempt and limit of every readable log: its rows of steps below the limit count."""
    kept = []
    for number, (attempt, limit) in enumerate(zip(attempts, find_limits(attempts), strict=True)):
        for log in attempt.logs:
            if not log.problem:
                entry = cache.entries[log.path]
                kept.append((entry.log, int((entry.content or {})["rank"]), number, limit))
    return kept


def _unreadable(run: str, found: list[Found], cache: Cache) -> list[Problem]:
    """Unreadable files other than logs; without its config.yaml or DONE.json a run must not be averaged."""
    wrong = [(file, cache.entries[file.path].problem) for file in found if file.kind != "log"]
    problems = [Problem(file.path, why, file.kind in ("config", "done", "folder")) for file, why in wrong if why]
    if not any(file.kind == "config" for file in found):
        problems.append(Problem(f"{run}/config.yaml", "is not there any more", True))
    return problems


def _content(file: Found, cache: Cache) -> dict[str, Any] | None:
    """Content of a file; None if it cannot be read."""
    return cache.entries[file.path].content


def _run_row(key: str, path: Path, own: dict[Kind, dict[str, Any] | None], attempts: list[Attempt]) -> dict[str, Any]:
    """The row of a run in the frame `runs`, from its own files and its newest provenance."""
    config, status, done = own.get("config"), own.get("status") or {}, own.get("done")
    provenance: Mapping[str, Any] = next((a.provenance for a in reversed(attempts) if a.provenance), {})
    state = "done" if done is not None else status.get("state", "unknown")
    done = done or {}
    versions, git = provenance.get("versions") or {}, provenance.get("git") or {}
    argv, gpus = provenance.get("argv") or [], provenance.get("gpus") or []
    return {
        **{name: provenance.get(name) for name in RUN_COLUMNS},
        "run": key,
        "path": os.fsencode(path).decode("utf-8", "backslashreplace"),
        "state": state if config is not None else "unreadable",
        "error": status.get("error") if state == "failed" else None,
        "reason": done.get("reason"),
        "hash": provenance.get("hash") or done.get("hash"),
        "num_attempts": len(attempts),
        "elapsed_s": done.get("elapsed_s"),
        "cpu": (provenance.get("cpu") or {}).get("model"),
        "gpus": printable(", ".join(gpus)) or None,
        "torch": versions.get("torch"),
        "horovod": versions.get("horovod"),
        "own_parts": _describe_parts(provenance.get("own_parts") or []),
        "commit": git.get("commit"),
        "dirty": git.get("dirty"),
        "command": printable(" ".join(argv)) or None,
        "config": config or {},
    }


def _describe_parts(parts: Sequence[Mapping[str, Any]]) -> str | None:
    """`nets.py:WideNet (sha256 1a2b3c4d5e6f)`, from the provenance; None: there are none."""
    described = []
    for part in parts:
        version = f"version {part['version']}, " if part.get("version") else ""
        described.append(f"{part.get('name')} ({version}sha256 {(part.get('sha256') or 'unknown')[:HASH_DIGITS]})")
    return printable(", ".join(described)) or None


def _end_lost(rows: list[dict[str, Any]], folders: list[Path]) -> None:
    """Mark as failed, in place, runs whose status says that they train while no live process owns their folder."""
    lost = find_lost(folder for row, folder in zip(rows, folders, strict=True) if row["state"] == "running")
    for row, folder in zip(rows, folders, strict=True):
        if folder in lost:
            row |= {"state": "failed", "error": LOST}


def _runs_frame(rows: list[dict[str, Any]], keys: pl.Enum) -> pl.DataFrame:
    about = [
        pl.Series(name, [row[name] for row in rows], dtype=RUN_TYPES.get(name, pl.String()), strict=False)
        for name in RUN_COLUMNS
        if name not in ("run", "arm")
    ]
    run = pl.Series("run", [row["run"] for row in rows], dtype=keys)
    return with_arms(pl.DataFrame([run, *about, *config_columns([row["config"] for row in rows], RUN_COLUMNS)]))


def _row_limit(table: str) -> pl.Expr:
    """See `coverage.row_limit`."""
    limit = pl.col("limit")
    more = pl.when(limit.is_between(1, NO_LIMIT - 1)).then(row_limit(table, 1) - 1).otherwise(0)
    return limit + more


def _merged(cache: Cache, table: str, logs: pl.DataFrame) -> pl.LazyFrame:
    return (
        cache.scan(table)
        .join(logs.lazy(), on="log", how="inner")
        .filter(pl.col("step") < _row_limit(table))
        .select("run", "rank", "attempt", *log_schema(table))
    )
