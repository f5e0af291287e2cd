"""Gradients that are not finite: stop, skip, restore or ignore."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpclbfl.algorithms.client import Client
from hpclbfl.algorithms.state import RankState
from hpclbfl.runs.folder import RunFolder, checkpoint_steps
from hpclbfl.runs.log.reader import read_run
from hpclbfl.training.session import run_job
from hpclbfl.training.snapshot import state_of
from hpclbfl.training.state import TrainState
from tests.conftest import make_job

SYNCS: list[dict[str, Any]] = [{"kind": "bsp"}, {"kind": "fedavg", "local_steps": 3}]
FEW = {"stop": {"steps": 9}, "evaluate": {"every_steps": 9}, "checkpoint": {"every_steps": 3}}


def poison(monkeypatch: pytest.MonkeyPatch, times: int, step: int = 4) -> None:
    """Client 2's gradient becomes NaN in a step, so many times over."""
    taken, left = Client.forward_backward, [times]

    def faulty(client: Client, state: TrainState, record: Any, divisor: float, batch: Any) -> None:
        is_hit = state.counters.step == step and client.id == 2 and left[0] > 0
        left[0] -= is_hit
        taken(client, state, record, float("nan") if is_hit else divisor, batch)

    monkeypatch.setattr(Client, "forward_backward", faulty)


@pytest.mark.parametrize("sync", SYNCS, ids=["bsp", "fedavg"])
def test_stop(
    tmp_path: Path,
    toy_set: Path,
    sync: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    poison(monkeypatch, times=1)
    with pytest.raises(SystemExit) as ended:
        run_job(make_job(toy_set, sync=sync, **FEW), tmp_path)
    assert ended.value.code == 1
    assert "a gradient at or before step" in capfd.readouterr().err
    run = read_run(tmp_path)
    assert [bytes(kind) for kind in run.tables["events"]["kind"]] == [b"nonfinite"]
    status = RunFolder(tmp_path).status()
    assert status is not None and status.state == "failed" and "not finite" in status.error
    # The last good checkpoint is whole, and the run can go on from it.
    monkeypatch.undo()
    assert run_job(make_job(toy_set, sync=sync, **FEW), tmp_path, resume="must").step == 9


@pytest.mark.slow
@pytest.mark.parametrize("sync", SYNCS, ids=["bsp", "fedavg"])
def test_skip_leaves_the_state_as_it_was(
    tmp_path: Path, toy_set: Path, sync: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, times=1)
    seen: list[tuple[int, torch.Tensor]] = []
    counted = RankState.is_broken_by

    def watching(state: TrainState, sq_norm: Any) -> bool:
        broken = counted(state, sq_norm)
        shared, clients = state_of(state)
        model = shared["model"] if shared["model"] is not None else clients[2]["model"]
        seen.append((state.counters.step, model.clone()))
        return broken

    monkeypatch.setattr(RankState, "is_broken_by", watching)
    run_job(make_job(toy_set, sync=sync, on_nonfinite="skip", model={"name": "vit_cifar"}, **FEW), tmp_path)
    run = read_run(tmp_path)
    assert b"the step is skipped" in run.tables["events"]["text"][0]
    steps = run.tables["steps"]
    norm = "grad_sq_norm" if sync["kind"] == "bsp" else "local_grad_sq_norm"
    broken = steps[~np.isfinite(steps[norm])]
    assert set(broken["step"]) == {4} and (
        len(broken) == 4 if sync["kind"] == "bsp" else broken["client"].tolist() == [2]
    )
    # A skipped gradient is no predecessor: the next change is that to the step before.
    mine = steps[steps["client"] == 2]
    assert mine["grad_change"][5] == abs(mine[norm][5] - mine[norm][3]) / mine[norm][3]
    if sync["kind"] == "bsp":
        states = dict(seen)
        assert torch.equal(states[4], states[5])
        assert not torch.equal(states[5], states[6])
    assert np.isfinite(run.tables["evals"]["loss"]).all()


@pytest.mark.parametrize("kind", ["topk", "randomk"])
def test_a_skipped_gradient_leaves_nothing_in_a_residual(
    tmp_path: Path, toy_set: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All clients see it, although a compressor may have left the NaN out; the next steps are as finite as ever."""
    poison(monkeypatch, times=1)
    compression = {"kind": kind, "ratio": 0.05}
    run_job(make_job(toy_set, compression=compression, on_nonfinite="skip", **FEW), tmp_path)
    run = read_run(tmp_path)
    assert b"the step is skipped" in run.tables["events"]["text"][0]
    steps = run.tables["steps"]
    assert set(steps["step"][~np.isfinite(steps["grad_sq_norm"])]) == {4}
    assert np.isfinite(run.tables["evals"]["loss"]).all()


@pytest.mark.parametrize("sync", SYNCS, ids=["bsp", "fedavg"])
def test_restore_goes_back_once(
    tmp_path: Path, toy_set: Path, sync: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(toy_set, sync=sync, on_nonfinite="restore", **FEW)
    run_job(job, tmp_path / "whole")
    poison(monkeypatch, times=1)
    run_job(job, tmp_path / "hit")
    whole, hit = (torch.load(tmp_path / name / "model.pt") for name in ("whole", "hit"))
    assert all(torch.equal(hit[key], value) for key, value in whole.items())
    run = read_run(tmp_path / "hit")
    assert run.num_attempts == 2
    assert run.tables["steps"]["loss"].tolist() == read_run(tmp_path / "whole").tables["steps"]["loss"].tolist()
    poison(monkeypatch, times=9)
    with pytest.raises(SystemExit) as ended:
        run_job(job, tmp_path / "again")
    assert ended.value.code == 1 and read_run(tmp_path / "again").num_attempts == 2


@pytest.mark.parametrize("end", [{"stop": {"steps": 15}}, {"stop": {"steps": 30}, "checkpoint": {"every_steps": 13}}])
def test_a_client_that_trains_alone_tells_before_the_state_is_relied_on(
    tmp_path: Path, toy_set: Path, end: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Votes are taken every tenth step; the end, or a checkpoint, comes before the next.
    poison(monkeypatch, times=1, step=11)
    job = make_job(toy_set, sync={"kind": "fedavg", "local_steps": 10}, **{**FEW, **end})
    with pytest.raises(SystemExit) as ended:
        run_job(job, tmp_path)
    assert ended.value.code == 1
    assert RunFolder(tmp_path).done() is None
    assert not [step for step in checkpoint_steps(tmp_path / "checkpoints") if step > 11]


def test_restore_needs_a_checkpoint(
    tmp_path: Path, toy_set: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, times=1, step=1)
    with pytest.raises(SystemExit) as ended:
        run_job(make_job(toy_set, on_nonfinite="restore", **FEW), tmp_path)
    assert ended.value.code == 1
    assert capfd.readouterr().err.splitlines()[-1] == (
        "hpclbfl: error: step 2: a gradient at or before step 1 is not finite (on_nonfinite), and there is no "
        "checkpoint to go back to"
    )


def test_ignore_trains_on(tmp_path: Path, toy_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, times=1)
    assert run_job(make_job(toy_set, on_nonfinite="ignore", **FEW), tmp_path).step == 9
    assert np.isnan(read_run(tmp_path).tables["steps"]["loss"][-1])


@pytest.mark.parametrize("sync", SYNCS, ids=["bsp", "fedavg"])
@pytest.mark.parametrize("checkpoint", [{"every_steps": 6}, {"every_s": 1000}], ids=["a checkpoint", "the end"])
def test_a_host_that_looks_late_looks_before(
    tmp_path: Path,
    toy_set: Path,
    sync: dict[str, Any],
    checkpoint: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(RankState, "_looks_late", True)
    poison(monkeypatch, times=1)
    few = {"stop": {"steps": 9}, "evaluate": {"every_steps": 9}, "checkpoint": checkpoint}
    with pytest.raises(SystemExit) as ended:
        run_job(make_job(toy_set, sync=sync, **few), tmp_path)
    assert ended.value.code == 1
    assert "is not finite" in capfd.readouterr().err
    assert not (tmp_path / "model.pt").exists()
    assert not list((tmp_path / "checkpoints").glob("step-*"))
    assert [bytes(kind) for kind in read_run(tmp_path).tables["events"]["kind"]] == [b"nonfinite"]


def test_a_host_that_looks_late_goes_back_to_a_finite_checkpoint(
    tmp_path: Path, toy_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RankState, "_looks_late", True)
    poison(monkeypatch, times=1)
    outcome = run_job(make_job(toy_set, on_nonfinite="restore", **FEW), tmp_path)
    assert outcome.step == 9 and np.isfinite(outcome.loss)
