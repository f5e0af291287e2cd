"""Horovod with NCCL on a GPU, through the product's own launcher."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpclbfl.runs.log.reader import read_run
from tests.conftest import make_job
from tests.gpu import needs_gpu

pytestmark = [*needs_gpu, pytest.mark.skipif(importlib.util.find_spec("horovod") is None, reason="needs Horovod")]

SYNCS: list[dict[str, Any]] = [{"kind": "bsp"}, {"kind": "fedavg", "local_steps": 4}]


def launched(command: list[str], job: Path, run_dir: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "hpclbfl", *command, str(job), "--run-dir", str(run_dir)]
    return subprocess.run(argv, env={**os.environ, **environ}, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("sync", SYNCS, ids=["bsp", "fedavg"])
@pytest.mark.parametrize("is_async", ["1", "0"])
def test_one_rank_trains_to_the_bits_of_a_lone_process(
    tmp_path: Path, toy_set: Path, sync: dict[str, Any], is_async: str
) -> None:
    """Every bucket goes through NCCL, and is read only once it is there: many small ones, on streams of their own."""
    job = tmp_path / "job.yaml"
    few = {"stop": {"steps": 12}, "evaluate": {"every_steps": 6}}
    made = make_job(toy_set, sync=sync, model={"name": "resnet18"}, comm={"bucket_mb": 0.5}, **few)
    job.write_text(made.to_yaml())
    done = [
        launched(["train"], job, tmp_path / "alone"),
        launched(["launch", "-np", "1"], job, tmp_path / "ranks", HOROVOD_ENABLE_ASYNC_COMPLETION=is_async),
    ]
    assert [d.returncode for d in done] == [0, 0], done[1].stderr[-2000:]
    alone, ranks = (read_run(tmp_path / which) for which in ("alone", "ranks"))
    assert ranks.provenance["engine"] == "horovod"
    for column in ("loss", "grad_sq_norm", "local_grad_sq_norm"):
        np.testing.assert_array_equal(alone.tables["steps"][column], ranks.tables["steps"][column], err_msg=column)
    one, two = (torch.load(tmp_path / which / "model.pt", map_location="cpu") for which in ("alone", "ranks"))
    assert all(torch.equal(two[key], value) for key, value in one.items())


@pytest.mark.skipif(torch.cuda.device_count() != 1, reason="needs a machine of one GPU")
def test_two_ranks_on_one_gpu_are_refused_in_one_line(tmp_path: Path, toy_set: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(make_job(toy_set, stop={"steps": 3}).to_yaml())
    done = launched(["launch", "-np", "2"], job, tmp_path / "run")
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "share a GPU" in line]
    assert len(lines) == 1 and "start one rank for each GPU" in lines[0], done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_as_one(tmp_path: Path, toy_set: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(make_job(toy_set, stop={"steps": 12}).to_yaml())
    for count in ("1", "2"):
        assert launched(["launch", "-np", count], job, tmp_path / count).returncode == 0
    losses = [np.sort(read_run(tmp_path / count).tables["steps"]["loss"]) for count in ("1", "2")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-9)
