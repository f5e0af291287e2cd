"""Post-local SGD and SelSync: their rules, and whole runs against methods that they equal in the limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpclbfl.run import run_job
from hpclbfl.runlog.reader import read_run
from hpclbfl.sync.post_local import PostLocal
from hpclbfl.sync.selsync import SelectiveSynchronisation
from tests.conftest import make_job

FEW = {"stop": {"steps": 8}, "evaluate": {"every_steps": 8}}


def trained(folder: Path, toy_set: Path, **sections: Any) -> dict[str, torch.Tensor]:
    run_job(make_job(toy_set, **{**FEW, **sections}), folder)
    loaded: dict[str, torch.Tensor] = torch.load(folder / "model.pt")
    return loaded


def test_post_local_by_hand() -> None:
    sync = PostLocal(switch_step=3, local_steps=2)
    assert [sync.shared(step) for step in range(1, 8)] == [True] * 3 + [False] * 4
    assert [sync.averages(step, fired=False) for step in range(1, 8)] == [False] * 4 + [True, False, True]
    assert [sync.needs_vote(step) for step in range(1, 8)] == [False] * 4 + [True, False, True]


def test_selsync_averages_where_a_client_asks() -> None:
    sync = SelectiveSynchronisation()
    assert not sync.shared(1) and sync.needs_vote(1)
    assert sync.averages(1, fired=True) and not sync.averages(1, fired=False)


def test_post_local_is_bsp_before_its_switch(tmp_path: Path, toy_set: Path) -> None:
    bsp = trained(tmp_path / "bsp", toy_set)
    post = trained(tmp_path / "post", toy_set, sync={"kind": "post_local", "switch_step": 8, "local_steps": 5})
    assert all(torch.equal(post[key], value) for key, value in bsp.items())


def test_a_lone_client_trains_on_after_the_switch_as_if_nothing_had_happened(tmp_path: Path, toy_set: Path) -> None:
    """Momentum and BatchNorm's statistics go over to the copy."""
    bsp = trained(tmp_path / "bsp", toy_set, clients=1)
    sync = {"kind": "post_local", "switch_step": 3, "local_steps": 2}
    post = trained(tmp_path / "post", toy_set, clients=1, sync=sync)
    for key, value in bsp.items():
        torch.testing.assert_close(post[key], value, rtol=1e-12, atol=1e-12, msg=key)


def test_post_local_averages_after_the_switch(tmp_path: Path, toy_set: Path) -> None:
    """With plain SGD and an averaging after every step it is BSP to the end."""
    plain = {"optimizer": {"lr": 0.05}}
    bsp = trained(tmp_path / "bsp", toy_set, **plain)
    post = trained(tmp_path / "post", toy_set, sync={"kind": "post_local", "switch_step": 4, "local_steps": 1}, **plain)
    parameters = [key for key in bsp if "running" not in key and "num_batches" not in key]
    for key in parameters:
        torch.testing.assert_close(post[key], bsp[key], rtol=1e-9, atol=1e-9, msg=key)
    steps = read_run(tmp_path / "post").tables["steps"]
    assert np.isnan(steps["local_grad_sq_norm"][steps["step"] < 4]).all()
    assert np.isnan(steps["grad_sq_norm"][steps["step"] >= 4]).all()
    assert steps["round"].tolist() == steps["step"].tolist()


@pytest.mark.parametrize("change", ["selsync", "squared_norm"])
def test_selsync_between_its_limits(tmp_path: Path, toy_set: Path, change: str) -> None:
    never = {"kind": "selsync", "threshold": 1e9, "change": change}
    alone = trained(tmp_path / "alone", toy_set, sync={"kind": "fedavg", "local_steps": 100})
    lazy = trained(tmp_path / "lazy", toy_set, sync=never)
    assert all(torch.equal(lazy[key], value) for key, value in alone.items())
    trained(tmp_path / "some", toy_set, sync={"kind": "selsync", "threshold": 0.1, "change": change})
    steps = read_run(tmp_path / "some").tables["steps"]
    changes = steps["grad_change"].reshape(-1, 4)
    asked = (changes >= 0.1).any(1)
    assert not asked[0] and asked.sum() > 0
    # A round ends with the step in which a client asked.
    expected = np.concatenate([[0], np.cumsum(asked)[:-1]])
    assert steps["round"].reshape(-1, 4)[:, 0].tolist() == expected.tolist()
