"""Run folders of an earlier version, in which models, optimizers and others had no configs of their own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from hpclbfl.analysis.read.load import load
from hpclbfl.config.job import JobConfig, parse_job
from hpclbfl.runs.log.reader import read_run
from hpclbfl.training.session import run_job

OLDER = Path(__file__).with_name("older")
SYNCS: dict[str, dict[str, Any]] = {"bsp": {"kind": "bsp"}, "fedavg": {"kind": "fedavg", "local_steps": 3}}
LOSSES = {"bsp": "0x1.5559120000000p+1", "fedavg": "0x1.8d916e0000000p+1"}
"""Of the last row, as that version read them."""


def job_of(kind: str, steps: int, **sections: Any) -> JobConfig:
    values = {
        "name": "fixture",
        "clients": 2,
        "data": {"name": "digits", "limit": 200},
        "model": {"name": "alexnet_small"},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "batching": {"local_batch_size": 8},
        "evaluate": {"every_steps": 3},
        "sync": SYNCS[kind],
        "stop": {"steps": steps},
    }
    return parse_job({**values, **sections}, "job.yaml")


@pytest.fixture(autouse=True)
def diagnostics(terminal: None) -> None:
    """What is told goes to standard error here."""


@pytest.fixture(params=list(SYNCS))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLDER / request.param, tmp_path / request.param))


def test_its_log_is_read(folder: Path) -> None:
    run = read_run(folder)
    assert run.torn == [] and len(run.tables["steps"]) == 12
    # Of schema 2, which had no metrics.
    assert len(run.tables["metrics"]) == 0
    assert float(run.tables["steps"]["loss"][-1]).hex() == LOSSES[folder.name]
    frames = load(folder)
    assert frames.problems.is_empty()
    row = frames.runs.row(0, named=True)
    assert (row["state"], row["optimizer.momentum"], row["sync.kind"]) == ("done", 0.9, folder.name)
    assert "optimizer.betas" not in frames.runs.columns


def test_it_is_resumed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_job(job_of(folder.name, 6), folder).step == 6
    assert "already done, at step 6" in capfd.readouterr().err
    assert run_job(job_of(folder.name, 9), folder).step == 9
    assert "resumes after step 6, epoch 0.48" in capfd.readouterr().err
    run = read_run(folder)
    assert (run.num_attempts, len(run.tables["steps"]), run.torn) == (2, 18, [])


def test_another_job_is_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_job(job_of(folder.name, 9, optimizer={"name": "adam", "lr": 0.05}), folder)
    line = capfd.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2
    assert "holds another experiment: optimizer.betas was None, now [0.9, 0.999]; optimizer.eps was None, now" in line


@pytest.mark.parametrize(
    ("sections", "digest"),
    [
        ({}, "23df2ef006"),
        ({"optimizer": {"name": "lamb"}}, "b162fc539a"),
        ({"schedule": {"kind": "multistep", "milestones_epochs": [1, 2]}}, "28a58b0eab"),
        ({"partition": {"kind": "dirichlet", "alpha": 0.3}}, "f211511e4e"),
        ({"model": {"name": "resnet18", "stem": "cifar"}}, "5af74fca42"),
        ({"batching": {"policy": "dynamic", "global_batch_size": 8}}, "bfdecd67b1"),
    ],
)
def test_folders_are_found_by_the_digest_that_version_0_1_gave_them(sections: dict[str, Any], digest: str) -> None:
    anew = {"kind": "iid", "reshuffle": True}
    values = {"clients": 2, "data": {"name": "digits"}, "model": {"name": "resnet8"}, "partition": anew, **sections}
    assert parse_job(values, "job.yaml").former_digest("f" * 64) == digest
