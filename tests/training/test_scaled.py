"""Scaling in whole runs: design invariant 4, and the log read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpclbfl.runs.log.reader import read_run
from hpclbfl.training.session import run_job
from tests.conftest import make_job

SYNCS: list[dict[str, Any]] = [{"kind": "bsp"}, {"kind": "fedavg", "local_steps": 3}]


def weights(folder: Path, toy_set: Path, precision: str, **sections: Any) -> dict[str, torch.Tensor]:
    few = {"stop": {"steps": 8}, "evaluate": {"every_steps": 8}, "precision": precision}
    run_job(make_job(toy_set, **few, **sections), folder)
    loaded: dict[str, torch.Tensor] = torch.load(folder / "model.pt")
    return loaded


@pytest.mark.parametrize("sync", SYNCS, ids=["bsp", "fedavg"])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("factor", [4.0, 3.0])
def test_a_constant_factor_is_a_learning_rate(
    tmp_path: Path, toy_set: Path, sync: dict[str, Any], nesterov: bool, factor: float
) -> None:
    precision = "float32" if factor == 4.0 else "float64"
    base = {"momentum": 0.9, "nesterov": nesterov}
    scaled = weights(
        tmp_path / "scaled",
        toy_set,
        precision,
        sync=sync,
        optimizer={**base, "lr": 2**-7, "weight_decay": 2**-10},
        gradients={"scaler": {"factor": factor, "when": "always"}},
    )
    raised = weights(
        tmp_path / "raised",
        toy_set,
        precision,
        sync=sync,
        optimizer={**base, "lr": factor * 2**-7, "weight_decay": 2**-10 / factor},
    )
    for key, value in raised.items():
        if factor == 4.0:
            assert torch.equal(scaled[key], value), key
        else:
            torch.testing.assert_close(scaled[key], value, rtol=1e-6, atol=1e-6, msg=key)


@pytest.mark.parametrize("optimizer", [{"name": "sgd", "lr": 0.01, "momentum": 0.9}, {"name": "adam", "lr": 0.001}])
@pytest.mark.parametrize("sync", SYNCS, ids=["bsp", "fedavg"])
def test_the_log_tells_norm_change_and_factor(
    tmp_path: Path, toy_set: Path, sync: dict[str, Any], optimizer: dict[str, Any]
) -> None:
    scaler = {"factor": 2.0, "threshold": 0.3}
    job = make_job(toy_set, sync=sync, optimizer=optimizer, gradients={"scaler": scaler}, stop={"steps": 12})
    run_job(job, tmp_path)
    run = read_run(tmp_path)
    steps = run.tables["steps"]
    warnings = [e for e in run.tables["events"]["text"] if b"the factor hardly acts" in e]
    assert len(warnings) == (optimizer["name"] == "adam")
    norm = "grad_sq_norm" if sync["kind"] == "bsp" else "local_grad_sq_norm"
    for client in range(4):
        rows = steps[steps["client"] == client]
        norms = rows[norm]
        assert (norms > 0).all()
        np.testing.assert_allclose(rows["grad_change"][1:], np.abs(np.diff(norms)) / norms[:-1], rtol=1e-12)
        assert np.isnan(rows["grad_change"][0]) and rows["scale"][0] == 1
        assert rows["scale"][1:].tolist() == [2.0 if c >= 0.3 else 1.0 for c in rows["grad_change"][1:]]
    assert {1.0, 2.0} == set(steps["scale"])


def test_norms_are_of_the_unscaled_gradient(tmp_path: Path, toy_set: Path) -> None:
    """The first step sees the same gradient whatever the factor."""
    first = []
    for factor in (1.0, 16.0):
        job = make_job(toy_set, gradients={"scaler": {"factor": factor, "when": "always"}}, stop={"steps": 1})
        run_job(job, tmp_path / str(factor))
        first.append(read_run(tmp_path / str(factor)).tables["steps"]["grad_sq_norm"][0])
    assert first[0] == first[1]
