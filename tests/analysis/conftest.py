from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pytest

from hpclbfl.analysis.measure.report import load_some, make_report
from hpclbfl.analysis.show.printing import Format, print_json, print_report
from hpclbfl.runs.folder import Attempt, RunFolder
from hpclbfl.runs.lock import acquire
from hpclbfl.runs.log.writer import RunLog

ONE_LABEL = "partition: {kind: labels_per_client, labels: 1}\n"


@pytest.fixture(autouse=True)
def diagnostics(terminal: None) -> None:
    """What is told goes to standard error here."""


def print_folder(
    root: Path, as_json: bool = False, form: Format = "text", baseline: str | None = None, target: float | None = None
) -> None:
    """What `hpclbfl report` prints."""
    report = make_report(load_some(root), baseline, target)
    print_json(report) if as_json else print_report(report, form)


def two_client_run(
    path: Path,
    sync: str = "{kind: bsp}",
    partition: str = "",
    state: str = "done",
    num_steps: int = 20,
    seed: int = 0,
    metrics: Mapping[str, Sequence[float]] = MappingProxyType({}),
    message_bytes: int | None = None,
) -> Attempt:
    """Two ranks, one client each with 30 and 10 samples per step; client c's loss in step s is 10 * c + s.

    Args:
        metrics: of all clients together: by name, a value of each step.
        message_bytes: of a reduction.
    """
    folder = RunFolder(path)
    attempt = folder.next_attempt()
    folder.write_config(f"name: a\nseed: {seed}\nclients: 2\nsync: {sync}\n{partition}")
    attempt.write_provenance({"engine": "horovod", "num_ranks": 2, "message_bytes": message_bytes})
    for rank, size in enumerate((30, 10)):
        with RunLog(attempt.rank_log(rank), {"rank": rank, "attempt": 0, "resumed_from_step": 0}) as log:
            for step in range(num_steps):
                log.append(
                    "steps",
                    step=step,
                    round=step,
                    epoch=(step + 1) * 0.1,
                    client=rank,
                    local_batch_size=size,
                    num_samples=(step + 1) * 40,
                    loss=10.0 * rank + step,
                    t_data_s=0.1,
                    t_compute_s=0.6,
                    t_sync_s=0.3,
                    t_step_s=1.0,
                )
            if rank == 0:
                for name, values in metrics.items():
                    for step, value in enumerate(values):
                        log.append("metrics", step=step, client=-1, name=name, value=value)
                for step, top1 in ((9, 0.75), (19, 0.71234)):
                    common = {"step": step, "num_samples": (step + 1) * 40, "elapsed_s": step + 1.5}
                    log.append("evals", **common, split="test", loss=1.0, top1=top1, top5=0.9)
                    log.append("evals", **common, split="train", loss=1.0, top1=0.99, top5=1.0)
    if state == "running":
        # By this process, which lives.
        acquire(path, {})
    folder.write_status(state, **({"error": "rank 1: out of memory"} if state == "failed" else {}))
    if state == "done":
        folder.mark_done({})
    return attempt


def make_old(root: Path) -> None:
    """Make all files an hour old: what was written just now may change again, and is read again."""
    old = time.time() - 3600
    for path in root.rglob("*"):
        if path.is_file() and ".hpclbfl-cache" not in path.parts:
            os.utime(path, (old, old))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the logs that `load` reads from HDF5 (run and file), as they are read."""
    from hpclbfl.analysis.read import load as module

    seen: list[str] = []
    original = module.read_attempt_log

    def counted(path: Path):
        seen.append(f"{path.parts[-4]}/{path.name}")
        return original(path)

    monkeypatch.setattr(module, "read_attempt_log", counted)
    return seen
