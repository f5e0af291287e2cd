"""A run that is cut and goes on, on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hpclbfl.training.loop
from hpclbfl.runs.log.reader import read_run
from hpclbfl.training.saving import CheckpointManager
from hpclbfl.training.session import run_job
from tests.conftest import make_job
from tests.gpu import needs_gpu
from tests.training.test_checkpoint import JOBS, cut_at, job_of, untimed
from tests.training.test_nonfinite import SYNCS, poison

pytestmark = needs_gpu


@pytest.mark.parametrize("name", list(JOBS))
def test_cut_and_resumed_is_bit_identical(
    tmp_path: Path, toy_set: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(toy_set, name, deterministic=True)
    run_job(job, tmp_path / "whole")
    with monkeypatch.context() as patch:
        cut_at(patch, 8)
        with pytest.raises(SystemExit):
            run_job(job, tmp_path / "cut")
    run_job(job, tmp_path / "cut", resume="must")
    whole, cut = read_run(tmp_path / "whole"), read_run(tmp_path / "cut")
    expected = untimed(whole)
    for key, value in untimed(cut).items():
        assert value == expected[key], key
    weights = [torch.load(tmp_path / which / "model.pt") for which in ("whole", "cut")]
    assert all(torch.equal(weights[1][key], value) for key, value in weights[0].items())


@pytest.mark.parametrize("sync", SYNCS, ids=["bsp", "fedavg"])
@pytest.mark.parametrize("when", ["before a checkpoint", "before the end"])
def test_a_gradient_that_is_not_finite_never_reaches_a_checkpoint_or_the_end(
    tmp_path: Path, toy_set: Path, sync: dict[str, Any], when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, times=1, step=4)
    checkpoint = {"every_steps": 6} if when == "before a checkpoint" else {"every_s": 1000}
    job = make_job(toy_set, sync=sync, stop={"steps": 9}, evaluate={"every_steps": 9}, checkpoint=checkpoint)
    with pytest.raises(SystemExit) as ended:
        run_job(job, tmp_path)
    assert ended.value.code == 1
    assert not (tmp_path / "model.pt").exists()
    assert not list((tmp_path / "checkpoints").glob("step-*"))


def test_a_timed_checkpoint_is_saved_once(tmp_path: Path, toy_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    save = CheckpointManager.save

    def watching(saver: CheckpointManager) -> None:
        saved.append(saver._state.counters.step)
        save(saver)

    monkeypatch.setattr(hpclbfl.training.loop.CheckpointManager, "save", watching)
    # By a clock that is past its time after four steps, until something has been saved.
    monkeypatch.setattr(CheckpointManager, "asks", lambda saver: saver.count == 0 and saver._state.counters.step >= 4)
    run_job(make_job(toy_set, stop={"steps": 12}, checkpoint={"every_s": 1000}), tmp_path)
    assert saved == [6]


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_the_noise_scale_is_that_of_unscaled_gradients(tmp_path: Path, toy_set: Path, precision: str) -> None:
    for which in ("float64", precision):
        job = make_job(
            toy_set, precision=which, gradients={"noise_scale": {}}, stop={"steps": 2}, evaluate={"every_steps": 2}
        )
        run_job(job, tmp_path / which)
    reference, found = (read_run(tmp_path / which).tables["steps"] for which in ("float64", precision))
    for column in ("grad_sq_norm", "local_grad_sq_norm", "tr_sigma"):
        np.testing.assert_allclose(found[column][:4], reference[column][:4], rtol=0.05, err_msg=column)
