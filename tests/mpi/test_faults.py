"""Kills, stalls and stops under a real mpirun; every run is whole afterwards, and equal to one that was not
disturbed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpclbfl.config import JobConfig
from hpclbfl.launch import run_mpirun
from hpclbfl.run import run_job
from hpclbfl.runfolder import RunFolder
from hpclbfl.runlog.reader import read_run
from tests.conftest import make_job
from tests.test_checkpoint import untimed

pytestmark = pytest.mark.mpi

PROGRAM = str(Path(__file__).with_name("fault_program.py"))
SYNCS: dict[str, Any] = {"bsp": {"kind": "bsp"}, "fedavg": {"kind": "fedavg", "local_steps": 4}}
# name: synchroniser, fault, the rank that it hits.
FAULTS = {
    "kill-0": ("bsp", "kill", 0),
    "kill-1": ("fedavg", "kill", 1),
    "saving": ("fedavg", "kill-saving", 1),
    "publishing": ("bsp", "kill-publishing", 0),
    "published": ("fedavg", "kill-published", 0),
    "exit": ("bsp", "exit", 1),
    "sleep": ("bsp", "sleep", 1),
    "full": ("bsp", "full", 1),
}
KILLED = {"bsp": "kill-0", "fedavg": "kill-1"}
STOPS = {"usr2": ("bsp", "USR2", 1), "term": ("fedavg", "TERM", 0)}
LIMIT_S = 60


def job_of(toy_set: Path, sync: str) -> JobConfig:
    return make_job(
        toy_set,
        sync=SYNCS[sync],
        gradients={"scaler": {"factor": 2.0, "threshold": 0.3}},
        stop={"steps": 12},
        evaluate={"every_steps": 5},
        checkpoint={"every_steps": 3},
        comm={"stall_timeout_s": 4},
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, toy_set: Path) -> Path:
    """With the job files, and the undisturbed runs on two ranks."""
    base = tmp_path_factory.mktemp("faults")
    for sync in SYNCS:
        (base / f"{sync}.yaml").write_text(job_of(toy_set, sync).to_yaml())
    train(base, [[str(base / f"{sync}.yaml"), str(base / f"whole-{sync}"), "train"] for sync in SYNCS])
    return base


def train(base: Path, todo: list[list[str]]) -> None:
    (base / "list.json").write_text(json.dumps(todo))
    program = str(Path(__file__).with_name("jobs_program.py"))
    assert run_mpirun(2, [sys.executable, program, str(base / "list.json")]) == 0


@pytest.fixture(scope="module")
def disturbed(base: Path) -> dict[str, tuple[int, float, str]]:
    """Exit code, seconds and stderr of every fault's run."""
    found = {}
    for name, (sync, fault, rank) in FAULTS.items():
        command = [sys.executable, PROGRAM, str(base / f"{sync}.yaml"), str(base / name), fault, str(rank)]
        code = "import sys; from hpclbfl.launch import run_mpirun; sys.exit(run_mpirun(2, sys.argv[1:]))"
        begin = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=120)
        found[name] = (done.returncode, time.monotonic() - begin, done.stderr)
    for name, (sync, fault, rank) in STOPS.items():
        command = [sys.executable, PROGRAM, str(base / f"{sync}.yaml"), str(base / name), fault, str(rank)]
        begin = time.monotonic()
        process = subprocess.Popen([sys.executable, "-c", code, *command], stderr=subprocess.PIPE, text=True)
        while not (base / name / "now").exists() and time.monotonic() - begin < LIMIT_S:
            time.sleep(0.02)
        process.send_signal(getattr(signal, f"SIG{fault}"))
        _, stderr = process.communicate(timeout=120)
        found[name] = (process.returncode, time.monotonic() - begin, stderr)
    for name in KILLED.values():
        shutil.copytree(base / name, base / f"{name}-alone")
    return found


@pytest.fixture(scope="module")
def resumed(base: Path, disturbed: dict[str, tuple[int, float, str]]) -> Path:
    """All of them gone on with, in one MPI job of two ranks."""
    todo = [[str(base / f"{sync}.yaml"), str(base / name), "train"] for name, (sync, _, _) in (FAULTS | STOPS).items()]
    train(base, todo)
    return base


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_fault_ends_the_job_in_time(disturbed: dict[str, tuple[int, float, str]], name: str) -> None:
    code, seconds, _ = disturbed[name]
    print(f"{name}: over after {seconds:.1f} s, start-up included, exit code {code}")
    assert code not in (0, 75)
    assert seconds < LIMIT_S


def test_what_is_missing_is_named(base: Path, disturbed: dict[str, tuple[int, float, str]]) -> None:
    assert "hpclbfl: error: rank 0: step 7: waited" in disturbed["sleep"][2]
    assert "for rank 1 (at step 7, last heard of" in disturbed["sleep"][2]
    assert "rank 1 cannot write a checkpoint: no space left on device" in disturbed["full"][2]
    status = RunFolder(base / "sleep").status()
    assert status is not None


@pytest.mark.parametrize("name", list(STOPS))
def test_a_stop_saves_and_asks_to_be_started_again(disturbed: dict[str, tuple[int, float, str]], name: str) -> None:
    code, seconds, stderr = disturbed[name]
    print(f"{name}: over after {seconds:.1f} s, exit code {code}")
    assert code == 75, stderr
    assert "asked to stop: saved after step" in stderr


@pytest.mark.parametrize("name", [*FAULTS, *STOPS])
def test_resumed_on_as_many_ranks_it_is_bit_identical(resumed: Path, name: str) -> None:
    sync = (FAULTS | STOPS)[name][0]
    whole, run = read_run(resumed / f"whole-{sync}"), read_run(resumed / name)
    torn = [error for error in run.torn if "left no log" not in str(error)]
    assert not torn
    found = untimed(run)
    for key, value in untimed(whole).items():
        assert found[key] == value, key
    first, second = (torch.load(resumed / which / "model.pt") for which in (f"whole-{sync}", name))
    assert all(torch.equal(second[key], value) for key, value in first.items())
    assert not list((resumed / name / "checkpoints").glob(".*"))


@pytest.mark.parametrize("sync", list(SYNCS))
def test_resumed_on_another_number_of_ranks_it_is_equal_up_to_rounding(
    base: Path, toy_set: Path, sync: str, disturbed: dict[str, tuple[int, float, str]]
) -> None:
    """Two ranks, one of them killed, go on as one process."""
    folder = base / f"{KILLED[sync]}-alone"
    run_job(job_of(toy_set, sync), folder, resume="must")
    whole, run = read_run(base / f"whole-{sync}"), read_run(folder)
    # Up to the checkpoint it is the run on two ranks, afterwards that on one.
    assert run.tables["steps"]["step"].tolist() == whole.tables["steps"]["step"].tolist()
    np.testing.assert_allclose(run.tables["steps"]["loss"], whole.tables["steps"]["loss"], atol=1e-9)
    np.testing.assert_allclose(run.tables["evals"]["loss"], whole.tables["evals"]["loss"], atol=1e-9)
    assert run.num_attempts == 2
