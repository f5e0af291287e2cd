"""Whole runs on a GPU: every net, synchroniser and precision, and their agreement with a CPU."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpclbfl.comm import devices
from hpclbfl.data import loader
from hpclbfl.data.datasets import load_dataset
from hpclbfl.data.loaders import make_loaders
from hpclbfl.runs.log.reader import read_run
from hpclbfl.training.session import run_job
from tests.conftest import make_job
from tests.gpu import needs_gpu

pytestmark = needs_gpu

SYNCS: dict[str, dict[str, Any]] = {
    "bsp": {"kind": "bsp"},
    "fedavg": {"kind": "fedavg", "local_steps": 4, "optimizer_state": "average"},
    "selsync": {"kind": "selsync", "threshold": 0.1},
    "post_local": {"kind": "post_local", "switch_step": 6, "local_steps": 3},
}


def scaler(sync: str) -> dict[str, Any]:
    """The scaler, on the change that the synchroniser watches."""
    change = "selsync" if sync == "selsync" else "squared_norm"
    return {"scaler": {"factor": 2.0, "threshold": 0.3, "change": change}}


FEW = {"stop": {"steps": 12}, "evaluate": {"every_steps": 6}}


def check(run_dir: Path, sync: str, num_steps: int = 12) -> None:
    """All rows are there, their numbers known, their times positive."""
    steps = read_run(run_dir).tables["steps"]
    assert len(steps) == 4 * num_steps
    assert np.isfinite(steps["loss"]).all() and np.isfinite(steps["scale"]).all()
    shared = steps["step"] < {"bsp": num_steps, "post_local": 6}.get(sync, 0)
    assert np.isfinite(steps["grad_sq_norm"][shared]).all()
    assert np.isfinite(steps["local_grad_sq_norm"][~shared]).all()
    assert (steps["t_compute_s"] > 0).all() and (steps["t_step_s"] < 60).all()
    np.testing.assert_allclose(steps["t_sync_s"], steps["t_wait_s"] + steps["t_transfer_s"], atol=1e-9)


@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize("model", ["resnet8", "resnet18", "vgg_small"])
def test_nets_and_synchronisers(tmp_path: Path, toy_set: Path, model: str, sync: str) -> None:
    job = make_job(toy_set, precision="float32", model={"name": model}, sync=SYNCS[sync], gradients=scaler(sync), **FEW)
    outcome = run_job(job, tmp_path)
    assert outcome.step == 12 and math.isfinite(outcome.loss)
    check(tmp_path, sync)


@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize("precision", ["float32", "float64", "bf16", "fp16"])
def test_precisions(tmp_path: Path, toy_set: Path, precision: str, sync: str) -> None:
    job = make_job(toy_set, precision=precision, sync=SYNCS[sync], gradients=scaler(sync), **FEW)
    assert math.isfinite(run_job(job, tmp_path).loss)


@pytest.mark.parametrize("sync", ["bsp", "fedavg"])
@pytest.mark.parametrize(
    "compression",
    [
        {"kind": "topk", "ratio": 0.1, "adapt": {"by": "phase", "to": 0.01}},
        {"kind": "randomk", "ratio": 0.1},
        {"kind": "randomk", "ratio": 0.1, "draw": "own"},
        {"kind": "powersgd", "rank": 2},
        {"kind": "qsgd", "bits": 4},
        {"kind": "signsgd"},
        {"kind": "fp16"},
    ],
    ids=lambda values: values["kind"],
)
def test_compressors_agree_with_a_cpu(
    tmp_path: Path, toy_set: Path, compression: dict[str, Any], sync: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(toy_set, sync=SYNCS[sync], compression=compression, **FEW)
    run_job(job, tmp_path / "gpu")
    with monkeypatch.context() as patch:
        patch.setattr(devices, "choose", lambda comm: torch.device("cpu"))
        run_job(job, tmp_path / "cpu")
    gpu, cpu = (read_run(tmp_path / name).tables["steps"]["loss"] for name in ("gpu", "cpu"))
    # In float64; where two magnitudes nearly tie, another one is sent.
    np.testing.assert_allclose(gpu[:24], cpu[:24], rtol=1e-3)


@pytest.mark.parametrize("sync", ["bsp", "post_local"])
@pytest.mark.parametrize(
    "teacher",
    [
        {"kind": "residual", "small_batch": 2},
        {"kind": "subspace", "factor": 2.0, "rank": 3, "refresh": "drift"},
        {"kind": "mse", "small_batch": 2, "refresh": "squared_norm"},
    ],
    ids=lambda teacher: teacher["kind"],
)
def test_teachers_agree_on_a_gpu_and_a_cpu(
    tmp_path: Path, toy_set: Path, teacher: dict[str, Any], sync: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(toy_set, sync=SYNCS[sync], gradients={"teacher": teacher, "clip_norm": 1.0}, stop={"steps": 9})
    run_job(job, tmp_path / "gpu")
    monkeypatch.setattr(devices, "choose", lambda comm: torch.device("cpu"))
    run_job(job, tmp_path / "cpu")
    runs = [read_run(tmp_path / which).tables for which in ("gpu", "cpu")]
    np.testing.assert_allclose(runs[0]["steps"]["loss"], runs[1]["steps"]["loss"], rtol=1e-5)
    rows = [run["metrics"][run["metrics"]["name"] != b"teacher seconds"] for run in runs]
    assert rows[0][["step", "client", "name"]].tolist() == rows[1][["step", "client", "name"]].tolist()
    np.testing.assert_allclose(rows[0]["value"], rows[1]["value"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sync", SYNCS)
def test_a_gpu_and_a_cpu_agree(tmp_path: Path, toy_set: Path, sync: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(toy_set, sync=SYNCS[sync], gradients=scaler(sync), **FEW)
    on_gpu = run_job(job, tmp_path / "gpu")
    monkeypatch.setattr(devices, "choose", lambda comm: torch.device("cpu"))
    on_cpu = run_job(job, tmp_path / "cpu")
    assert on_gpu.loss == pytest.approx(on_cpu.loss, rel=1e-6)
    tables = [read_run(tmp_path / which).tables["steps"] for which in ("gpu", "cpu")]
    for column in ("loss", "grad_sq_norm", "local_grad_sq_norm", "grad_change", "scale", "local_batch_size"):
        np.testing.assert_allclose(tables[0][column], tables[1][column], rtol=1e-6, err_msg=column)


@pytest.mark.parametrize(
    ("model", "side"),
    list(
        {
            "resnet8": 8,
            "resnet18": 32,
            "vgg_small": 8,
            "alexnet_small": 8,
            "vit_cifar": 8,
            "resnet8_gn": 8,
            "vgg11": 32,
            "vgg11_bn": 32,
            "alexnet": 64,
        }.items()
    ),
)
def test_deterministic_kernels_give_the_same_bits_twice(tmp_path: Path, toy_set: Path, model: str, side: int) -> None:
    data = {"name": "packed", "path": str(toy_set), "augment": "crop_flip", "resize": side}
    job = make_job(toy_set, precision="float32", deterministic=True, data=data, model={"name": model}, **FEW)
    for which in ("one", "two"):
        run_job(job, tmp_path / which)
    one, two = (torch.load(tmp_path / which / "model.pt", map_location="cpu") for which in ("one", "two"))
    assert all(torch.equal(two[key], value) for key, value in one.items())


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_batches_made_on_the_gpu_are_those_of_the_host(
    toy_set: Path, augment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(toy_set, data={"name": "packed", "path": str(toy_set), "augment": augment})
    dataset, gpu = load_dataset(job.data), torch.device("cuda", 0)
    samples = np.random.default_rng(5).integers(0, len(dataset.train), 500)
    passes = np.arange(500)
    found = make_loaders(dataset, job.data, 3, gpu, torch.float32).train
    assert found._on_device is not None
    monkeypatch.setattr(loader, "has_room", lambda num_bytes, device: False)
    expected = make_loaders(dataset, job.data, 3, gpu, torch.float32).train
    for a, b in zip(found.batch(samples, passes), expected.batch(samples, passes), strict=True):
        assert torch.equal(a, b)
