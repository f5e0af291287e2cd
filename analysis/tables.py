"""A summary of run folders, one row per run: `hpclbfl report DIR`."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from hpclbfl.errors import DataError
from hpclbfl.runlog.reader import RunLogs, Table, read_run

WIDTH = 100
"""Columns of text that the table takes where there is no terminal."""
FINAL_SHARE = 0.1
"""The training loss is the mean over this share of the steps, the last ones."""
_NAN = float("nan")


def find_runs(directory: str | Path) -> list[Path]:
    """All run folders (they hold config.yaml) at or below a folder, sorted by path.

    Raises:
        DataError: the folder is not there.
    """
    root = Path(directory)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give a run folder, or one that holds some")
    found = []
    for folder, below, files in os.walk(root):
        if "config.yaml" in files:
            found.append(Path(folder))
            below.clear()
    return sorted(found)


def summary_rows(runs: list[Path]) -> list[dict[str, Any]]:
    """One row per run. Accuracies, shares and epochs are plain numbers (0 to 1), times seconds; NaN: not measured.

    Columns: run, path, sync, partition, clients, ranks, engine, steps, epochs, top1 and top5 (test split, last
    evaluation), best_top1, train_loss (mean over samples in the last 10 % of the steps), elapsed_s (training alone),
    share_data, share_compute, share_sync (of the steps' time), state, problems (one line each).
    """
    return [_summary_row(path) for path in runs]


def print_summary(directory: str | Path, as_json: bool = False) -> None:
    """Print the runs at or below a folder to stdout, as a table or as JSON (NaN as null).

    Raises:
        DataError: the folder is not there, or holds no run.
    """
    rows = summary_rows(find_runs(directory))
    if not rows:
        raise DataError(f"{directory}: holds no run; a run folder has a config.yaml, 'hpclbfl train' makes one")
    if as_json:
        plain = [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows]
        sys.stdout.write(json.dumps(plain, indent=2) + "\n")
        return
    root = Path(directory)
    width = min(WIDTH, Console().width) if sys.stdout.isatty() else WIDTH
    console = Console(width=width, highlight=False)
    console.print(_rich_table(rows, root))
    is_one_run = (root / "config.yaml").exists()
    console.print(f"logs: {root if is_one_run else root / '<run>'}/attempts/*/rank*.h5", markup=False, soft_wrap=True)
    for row in rows:
        for problem in row["problems"]:
            console.print(f"{_name(row, root)}: {problem}", markup=False, soft_wrap=True)


def _name(row: dict[str, Any], root: Path) -> str:
    """The run's folder as seen from `root`; its own name where that is the root."""
    path = os.path.relpath(row["path"], root)
    return str(row["run"]) if path == os.curdir else path


def _rich_table(rows: list[dict[str, Any]], root: Path) -> RichTable:
    table = RichTable(title=escape(f"Runs in {root}"), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("sync", no_wrap=True)
    table.add_column("partition", no_wrap=True)
    for name in ("test accuracy", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    # Where all went well nobody needs to be told on every line.
    shows_state = any(row["state"] != "done" for row in rows)
    if shows_state:
        table.add_column("state", no_wrap=True)
    table.add_column("run", overflow="fold")
    for row in rows:
        cells = [
            row["sync"],
            row["partition"],
            _shown(row["top1"] * 100, ".1f", " %"),
            _shown(row["elapsed_s"], ".1f"),
            *([row["state"]] if shows_state else []),
            _name(row, root),
        ]
        table.add_row(*(escape(cell) for cell in cells))
    return table


def _shown(value: float, how: str, unit: str = "") -> str:
    return "-" if math.isnan(value) else format(value, how) + unit


def _summary_row(path: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"run": path.resolve().name, "path": str(path)}
    try:
        logs = read_run(path)
    except DataError as error:
        numbers = ("top1", "top5", "best_top1", "train_loss", "elapsed_s", "epochs")
        shares = ("share_data", "share_compute", "share_sync")
        return {
            **row,
            "sync": "?",
            "partition": "?",
            "clients": None,
            "ranks": None,
            "engine": None,
            "steps": 0,
            **dict.fromkeys((*numbers, *shares), _NAN),
            "state": "unreadable",
            "problems": [str(error)],
        }
    config, steps, evals = logs.config, logs.tables["steps"], logs.tables["evals"]
    tests = evals[evals["split"] == b"test"]
    return {
        **row,
        "sync": describe_sync(config),
        "partition": describe_partition(config),
        "clients": config.get("clients"),
        "ranks": logs.provenance.get("num_ranks"),
        "engine": logs.provenance.get("engine"),
        "steps": len(np.unique(steps["step"])),
        "epochs": float(steps["epoch"].max()) if len(steps) else _NAN,
        "top1": float(tests["top1"][-1]) if len(tests) else _NAN,
        "best_top1": _nan_max(tests["top1"]),
        "top5": float(tests["top5"][-1]) if len(tests) else _NAN,
        "train_loss": final_train_loss(steps),
        "elapsed_s": _elapsed_s(logs),
        **time_shares(steps),
        "state": _state(logs),
        "problems": _problems(logs),
    }


def describe_sync(config: dict[str, Any]) -> str:
    """The synchroniser in a few words, with H where it has one: `bsp`, `fedavg H=250`."""
    section = _section(config, "sync")
    kind = str(section.get("kind", "bsp"))
    if section.get("local_steps") is not None:
        return f"{kind} H={section['local_steps']}"
    if section.get("local_epochs") is not None:
        return f"{kind} H={float(section['local_epochs']):g} ep"
    return kind


def describe_partition(config: dict[str, Any]) -> str:
    """The partition in a few words: `iid`, `1 label/client`, `dirichlet 0.1`."""
    section = _section(config, "partition")
    kind = str(section.get("kind", "iid"))
    if kind == "labels_per_client":
        labels = section.get("labels")
        return f"{labels} label{'' if labels == 1 else 's'}/client"
    return kind if section.get("alpha") is None else f"{kind} {section['alpha']:g}"


def final_train_loss(steps: Table) -> float:
    """Mean training loss over the samples of the last 10 % of the steps (at least one), nats; NaN without steps."""
    numbers = np.unique(steps["step"])
    if not len(numbers):
        return _NAN
    first = numbers[-max(1, round(FINAL_SHARE * len(numbers)))]
    last = steps[(steps["step"] >= first) & (steps["local_batch_size"] > 0)]
    samples = last["local_batch_size"].sum()
    # A diverged loss is NaN and stays it; only rows without samples have none.
    return float((last["loss"] * last["local_batch_size"]).sum() / samples) if samples else _NAN


def time_shares(steps: Table) -> dict[str, float]:
    """Shares of data, compute and sync in the time of all clients' steps (Eq. 2), 0 to 1."""
    timed = steps[np.isfinite(steps["t_step_s"])]
    total = float(timed["t_step_s"].sum())
    parts = ("data", "compute", "sync")
    return {f"share_{p}": float(np.nansum(timed[f"t_{p}_s"])) / total if total > 0 else _NAN for p in parts}


def _section(config: dict[str, Any], key: str) -> dict[str, Any]:
    section = config.get(key)
    return section if isinstance(section, dict) else {}


def _nan_max(values: Table) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if len(finite) else _NAN


def _elapsed_s(logs: RunLogs) -> float:
    evals = logs.tables["evals"]
    if logs.done and isinstance(logs.done.get("elapsed_s"), int | float):
        return float(logs.done["elapsed_s"])
    return float(evals["elapsed_s"][-1]) if len(evals) else _NAN


def _state(logs: RunLogs) -> str:
    if logs.done is not None:
        return "done"
    return str(logs.status.get("state", "unknown"))


def _problems(logs: RunLogs) -> list[str]:
    problems = [str(torn) for torn in logs.torn]
    if logs.done is None and logs.status.get("state") == "failed":
        problems.insert(0, f"failed: {logs.status.get('error', 'no reason given')}")
    if not logs.num_attempts:
        problems.append("has no attempt yet")
    return problems
