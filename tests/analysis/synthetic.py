"""Synthetic sweeps, and how long they take to load: `python tests/analysis/synthetic.py [NUM_RUNS ...]`.

The measurement makes the runs below the system's temporary folder and removes them again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

from hpclbfl.runs.folder import RunFolder
from hpclbfl.runs.lock import acquire
from hpclbfl.runs.log.schema import DTYPES
from hpclbfl.runs.log.writer import RunLog

JOB = {
    "name": "synthetic",
    "clients": 4,
    "data": {"name": "packed", "path": "/data/cifar10.h5", "augment": "crop_flip"},
    "partition": {"kind": "iid", "reshuffle": False, "labels": None, "alpha": None},
    "model": {"name": "resnet18", "stem": "cifar"},
    "sync": {"kind": "bsp"},
    "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
    "stop": {"epochs": 10.0, "steps": None},
}
PROVENANCE = {
    "time": "2026-01-05T06:00:00+00:00",
    "engine": "horovod",
    "host": "node01",
    "device": "cuda:0",
    "platform": "Linux",
    "python": "3.11.7",
    "hpclbfl": "0.1.0",
    "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
    "versions": {"torch": "2.13.0", "horovod": "0.28.1"},
    "cpu": {"model": "Some CPU"},
    "gpus": ["Some GPU"],
    "argv": ["hpclbfl", "train", "job.yaml"],
    "data_fingerprint": "ab" * 32,
}


def make_run(
    path: Path,
    seed: int = 0,
    factor: float = 1.0,
    batch: int = 32,
    num_steps: int = 250,
    slowdown: tuple[float, ...] = (1.0, 1.0, 1.5, 3.0),
    dynamic: bool = False,
    state: str = "done",
    evaluate_every: int = 25,
    watched: bool = False,
    taught: bool = False,
) -> None:
    """One run of four clients on one rank, a row per client and step, that looks like training.

    Args:
        factor: X of the scaler; 1 has none. Above 8 the run suffers.
        batch: local batch size.
        slowdown: of each client.
        dynamic: whether batches follow the clients' speed after a fifth of the run.
        watched: whether the run watches two detectors, one of which knows no change in the first half.
        taught: whether it has a teacher.
    """
    rng = np.random.default_rng((seed, int(factor * 10), batch))
    clients = len(slowdown)
    folder = RunFolder(path)
    attempt = folder.next_attempt()
    job = {**JOB, "seed": seed, "clients": clients, "batching": {"policy": "fixed", "local_batch_size": batch}}
    scaler = {"factor": factor, "threshold": 0.5, "when": "delta_ge"} if factor != 1 else None
    job["gradients"] = {"scaler": scaler, "measure": True}
    folder.write_config(yaml.safe_dump(job, sort_keys=False))
    attempt.write_provenance({**PROVENANCE, "num_ranks": 1, "hash": path.name[-10:]})
    rows, elapsed, num_samples = _step_rows(rng, factor, batch, num_steps, slowdown, dynamic)
    ceiling = 0.9 - 0.04 * abs(np.log2(factor) - 2) - 0.03 * np.log2(batch / 32) + rng.normal(0, 0.008)
    with RunLog(attempt.rank_log(0), {"rank": 0, "attempt": 0, "resumed_from_step": 0}) as log:
        log.extend("steps", rows)
        if watched:
            log.extend("metrics", _watched_rows(rows["grad_change"][::clients]))
        if taught:
            for name, values in _teacher_values(rng, num_steps).items():
                for step, value in values:
                    log.append("metrics", step=step, client=-1, name=name, value=value)
        for step in range(evaluate_every - 1, num_steps, evaluate_every):
            grown = 1 - np.exp(-4 * (step + 1) / num_steps)
            common = {"step": step, "num_samples": int(num_samples[step]), "elapsed_s": float(elapsed[step])}
            common["epoch"] = num_samples[step] / 5000
            for split, more in (("test", 0.0), ("train", 0.06)):
                top1 = float(np.clip((ceiling + more) * grown + rng.normal(0, 0.006), 0, 1))
                log.append("evals", **common, split=split, loss=2.3 * (1.05 - top1), top1=top1, top5=min(1, top1 + 0.1))
    if state == "running":
        acquire(path, {})
    folder.write_status(state, **({"error": "step 70: CUDA out of memory"} if state == "failed" else {}))
    if state == "done":
        folder.mark_done({"reason": "steps", "elapsed_s": float(elapsed[-1])})


def _watched_rows(change):
    late = np.where(np.arange(len(change)) < len(change) // 2, np.nan, np.arange(len(change)) % 10 / 10)
    rows = np.zeros((len(change), 4), DTYPES["metrics"])
    rows["step"], rows["client"] = np.arange(len(change))[:, None], -1
    for place, (name, seen) in enumerate((("accordion", late), ("squared_norm", change))):
        rows["name"][:, 2 * place], rows["value"][:, 2 * place] = f"{name} change".encode(), seen
        fires = np.where(np.isnan(seen), np.nan, seen >= 0.5)
        rows["name"][:, 2 * place + 1], rows["value"][:, 2 * place + 1] = f"{name} fires".encode(), fires
    return rows.reshape(-1)


def _teacher_values(rng, num_steps):
    """What a teacher tells that is trained in two steps out of 25."""
    trained = [step for step in range(num_steps) if step % 25 < 2]
    return {
        "teacher noise": [(step, float(rng.lognormal(1, 0.3))) for step in range(num_steps)],
        "teacher energy": [(step, 0.75) for step in trained],
        "teacher error": [(step, float(rng.uniform(0.4, 0.8))) for step in trained[1:]],
        "teacher seconds": [(step, 0.5) for step in trained],
    }


def _step_rows(rng, factor, batch, num_steps, slowdown, dynamic):
    clients = len(slowdown)
    step = np.arange(num_steps)
    sizes = np.full((num_steps, clients), batch)
    if dynamic:
        fair = batch * clients * (1 / np.array(slowdown)) / (1 / np.array(slowdown)).sum()
        sizes[num_steps // 5 :] = np.maximum(1, np.round(fair))
    rows = np.zeros((num_steps, clients), DTYPES["steps"])
    norm = 4 * np.exp(-2 * step / num_steps) * rng.lognormal(0, 0.25, num_steps) / np.sqrt(batch / 32)
    sq_norm = norm**2
    change = np.full(num_steps, np.nan)
    change[1:] = abs(np.diff(sq_norm)) / sq_norm[:-1]
    compute = 2e-4 * sizes * np.array(slowdown) * rng.lognormal(0, 0.05, sizes.shape)
    data = 1e-3 * rng.lognormal(0, 0.1, sizes.shape)
    wait = (compute + data).max(axis=1, keepdims=True) - compute - data
    transfer = 2e-3 * rng.lognormal(0, 0.1, sizes.shape)
    num_samples = sizes.sum(axis=1).cumsum()
    columns = {
        "step": step[:, None],
        "round": step[:, None],
        "epoch": num_samples[:, None] / 5000,
        "client": np.arange(clients),
        "local_batch_size": sizes,
        "num_samples": num_samples[:, None],
        "loss": 2.3 * np.exp(-3 * step / num_steps)[:, None] * rng.lognormal(0, 0.1, sizes.shape),
        "lr": 0.1,
        "local_grad_sq_norm": sq_norm[:, None] * rng.lognormal(0.5, 0.2, sizes.shape),
        "grad_sq_norm": sq_norm[:, None],
        "grad_change": change[:, None],
        "scale": np.where(change >= 0.5, factor, 1.0)[:, None],
        **dict.fromkeys(("tr_sigma", "true_grad_sq_norm", "b_simple"), np.nan),
        "t_data_s": data,
        "t_compute_s": compute,
        "t_sync_s": wait + transfer,
        "t_wait_s": wait,
        "t_transfer_s": transfer,
        "t_step_s": data + compute + wait + transfer,
    }
    for name, values in columns.items():
        rows[name] = values
    return rows.reshape(-1), rows["t_step_s"].max(axis=1).cumsum(), num_samples


_MEASURE = """
import resource, sys, time
from hpclbfl.analysis.read.load import load
import polars as pl
begin = time.perf_counter()
frames = load(sys.argv[1])
loaded = time.perf_counter()
share = pl.col("t_compute_s").sum() / pl.col("t_step_s").sum()
means = frames.steps.group_by("run").agg(pl.len(), share.alias("share"), pl.col("loss").mean())
found = means.collect(engine="streaming")
ended = time.perf_counter()
assert len(found) == len(frames.runs), (len(found), len(frames.runs))
rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
rows = found["len"].sum()
print(f"load {loaded - begin:7.2f} s   means over {rows:9} rows {ended - loaded:5.2f} s   peak {rss:5.0f} MiB")
"""


def measure(counts: list[int]) -> None:
    """Print time and peak memory of a first and of a second load, for so many runs of one file and 1,000 rows each."""
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="hpclbfl-measure-") as folder:
            begin = time.perf_counter()
            for i in range(count):
                make_run(Path(folder) / "runs" / f"synthetic-{i:010d}", seed=i, factor=2.0 ** (i % 5))
            old = time.time() - 3600
            for path, _, names in os.walk(folder):
                for name in names:
                    os.utime(Path(path) / name, (old, old))
            print(f"{count} files of 1,000 rows (made in {time.perf_counter() - begin:.0f} s)", flush=True)
            for what in ("first", "again", "again"):
                done = subprocess.run([sys.executable, "-c", _MEASURE, folder], capture_output=True, text=True)
                print(f"  {what}: {done.stdout.strip() or done.stderr}", flush=True)
            size = sum(p.stat().st_size for p in Path(folder, ".hpclbfl-cache").iterdir())
            print(f"  cache {size / 1e6:.0f} MB", flush=True)


if __name__ == "__main__":
    measure([int(word) for word in sys.argv[1:]] or [100, 1000])
