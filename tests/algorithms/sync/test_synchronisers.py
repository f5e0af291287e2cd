"""Post-local SGD and SelSync: their rules, and whole runs against methods that they equal in the limit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpclbfl.algorithms.bsp import BulkSynchronous
from hpclbfl.algorithms.fedavg import FedAvgConfig, FederatedAveraging
from hpclbfl.algorithms.flags import CHANGED, STOP, UNKNOWN
from hpclbfl.algorithms.post_local import PostLocal, PostLocalConfig
from hpclbfl.algorithms.selsync import SelectiveSynchronisation, SelSyncConfig
from hpclbfl.config.job import parse_job
from hpclbfl.gradients.change import has_changed, is_unknown
from hpclbfl.runs.log.reader import read_run
from hpclbfl.training.session import run_job
from tests.conftest import make_job

FEW = {"stop": {"steps": 8}, "evaluate": {"every_steps": 8}}


def trained(folder: Path, toy_set: Path, **sections: Any) -> dict[str, torch.Tensor]:
    run_job(make_job(toy_set, **{**FEW, **sections}), folder)
    loaded: dict[str, torch.Tensor] = torch.load(folder / "model.pt")
    return loaded


def test_post_local_by_hand() -> None:
    config = PostLocalConfig(kind="post_local", switch_step=3, local_steps=2)
    algorithm = PostLocal(config, 8, 96)
    assert [algorithm.shares_model(step) for step in range(1, 8)] == [True] * 3 + [False] * 4
    assert [algorithm.averages(step, 0) for step in range(4, 8)] == [False, True, False, True]
    assert [algorithm.exchanges_flags(step) for step in range(4, 8)] == [False, True, False, True]


def test_selsync_averages_where_a_client_asks() -> None:
    algorithm = SelectiveSynchronisation(SelSyncConfig(kind="selsync", threshold=0.5), 8, 96)
    assert not algorithm.shares_model(1) and algorithm.exchanges_flags(1)
    assert algorithm.averages(1, CHANGED) and algorithm.averages(1, UNKNOWN) and not algorithm.averages(1, STOP)


def test_a_client_asks_where_its_change_is_large_or_not_known() -> None:
    known, unknown, norm = torch.tensor(0.5), torch.tensor(math.nan), torch.tensor(4.0)
    assert has_changed(known, 0.5) and not has_changed(known, 0.51) and not has_changed(unknown, 0.0)
    assert is_unknown(unknown, norm) and not is_unknown(known, norm)
    # Zero up to rounding: a client that has learnt its shard asks for nothing.
    assert is_unknown(unknown, torch.tensor(1e-13)) and not is_unknown(unknown, torch.tensor(1e-15))
    for broken in (math.inf, math.nan):
        assert not is_unknown(unknown, torch.tensor(broken)), "skipped: nothing to average"


def test_why_clients_were_never_averaged() -> None:
    assert BulkSynchronous().why_never(9, 0) == ""
    assert (
        FederatedAveraging(FedAvgConfig(kind="fedavg", local_steps=30), 8, 96).why_never(20, 0)
        == "a round has 30 steps, the run 20"
    )
    post = PostLocal(PostLocalConfig(kind="post_local", switch_step=12, local_steps=9), 8, 96)
    assert post.why_never(20, 12) == "a round has 9 steps, the run 8 after sync.switch_step"
    assert post.why_never(12, 12) == ""
    selsync = SelectiveSynchronisation(SelSyncConfig(kind="selsync", threshold=0.25), 8, 96)
    told = "no change of a client's gradient reached sync.threshold 0.25"
    assert selsync.why_never(40, 25) == f"{told} after the first 25 steps"
    assert selsync.why_never(40, 0) == told
    assert selsync.why_never(25, 25) == ""


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


@pytest.mark.slow
@pytest.mark.parametrize(("change", "unknown"), [("selsync", 25), ("squared_norm", 1)])
def test_selsync_between_its_limits(tmp_path: Path, toy_set: Path, change: str, unknown: int) -> None:
    """As long as no change is known, every step averages, whatever the threshold."""
    few = {"stop": {"steps": unknown}, "evaluate": {"every_steps": unknown}}
    often = trained(tmp_path / "often", toy_set, sync={"kind": "fedavg", "local_steps": 1}, **few)
    lazy = trained(tmp_path / "lazy", toy_set, sync={"kind": "selsync", "threshold": 1e9, "change": change}, **few)
    assert all(torch.equal(lazy[key], value) for key, value in often.items())

    steps = unknown + 9
    threshold = {"selsync": 0.025, "squared_norm": 0.4}[change]
    sync = {"kind": "selsync", "threshold": threshold, "change": change}
    trained(tmp_path / "some", toy_set, sync=sync, stop={"steps": steps}, evaluate={"every_steps": steps})
    rows = read_run(tmp_path / "some").tables["steps"]
    changes = rows["grad_change"].reshape(-1, 4)
    assert np.isnan(changes[:unknown]).all() and np.isfinite(changes[unknown:]).all()
    asked = np.isnan(changes).all(1) | (changes >= threshold).any(1)
    assert 0 < asked[unknown:].sum() < 9
    # A round ends with the step in which a client asked.
    expected = np.concatenate([[0], np.cumsum(asked)[:-1]])
    assert rows["round"].reshape(-1, 4)[:, 0].tolist() == expected.tolist()


def test_selsync_averages_by_default_on_real_images(tmp_path: Path) -> None:
    """The digits, as the first job of the manual has them; later steps average because a client saw a change."""
    values: dict[str, Any] = {
        "name": "digits",
        "clients": 4,
        "data": {"name": "digits", "limit": 400},
        "model": {"name": "resnet8"},
    }
    values |= {"optimizer": {"lr": 0.1, "momentum": 0.9}, "batching": {"local_batch_size": 8}, "stop": {"steps": 40}}
    job = {**values, "sync": {"kind": "selsync"}}
    run_job(parse_job(job, "job.yaml"), tmp_path)
    rows = read_run(tmp_path).tables["steps"]
    assert rows["round"].max() > 25
    known = rows["grad_change"][rows["step"] > 25]
    assert (known >= 0.05).any()


def test_a_gradient_that_is_not_finite_is_no_reason_to_average(
    tmp_path: Path, toy_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hpclbfl.gradients.gradient

    taken = hpclbfl.gradients.gradient.squared_norm

    def broken(gradients: Any) -> torch.Tensor:
        return taken(gradients) * math.nan

    monkeypatch.setattr(hpclbfl.gradients.gradient, "squared_norm", broken)
    sync = {"kind": "selsync", "threshold": 0.0, "change": "squared_norm"}
    trained(tmp_path, toy_set, sync=sync, on_nonfinite="skip")
    assert set(read_run(tmp_path).tables["steps"]["round"].tolist()) == {0}
