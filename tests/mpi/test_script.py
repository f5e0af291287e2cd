"""Scripts that train on several ranks, and the levels of diagnostics that a launch hands on to its ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpclbfl.launch.mpirun import run_mpirun
from tests.conftest import make_job

pytestmark = pytest.mark.mpi

PROGRAM = Path(__file__).with_name("script_program.py")


@pytest.fixture
def job(tmp_path: Path, toy_set: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(make_job(toy_set, stop={"steps": 3}, evaluate={"every_steps": 3}).to_yaml())
    return path


@pytest.mark.parametrize("engine", ["auto", "mpi"])
def test_runs_one_after_the_other(job: Path, tmp_path: Path, engine: str, capfd: pytest.CaptureFixture[str]) -> None:
    job.write_text(job.read_text().replace("engine: auto", f"engine: {engine}"))
    assert run_mpirun(2, [sys.executable, str(PROGRAM), str(job), str(tmp_path)]) == 0
    was, other = ("mpi", "horovod") if engine == "mpi" else ("horovod", "mpi")
    refused = f"comm.engine: this program has joined its MPI job through {was}, which cannot be changed to {other}; "
    for rank in range(2):
        said = json.loads((tmp_path / f"said-{rank}.json").read_text())
        assert said == [f"{refused}leave it 'auto'", "same done True"]
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_a_rank_that_fails_ends_all(job: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_mpirun(2, [sys.executable, str(PROGRAM), str(job), str(tmp_path), "fail"]) == 1
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1] == "hpclbfl: error: rank 1: step 1: ValueError: only here"
    status = json.loads((tmp_path / "first" / "status.json").read_text())
    assert (status["state"], status["rank"]) == ("failed", 1)


@pytest.mark.parametrize(("words", "lines", "details"), [([], 2, 0), (["-q"], 0, 0), (["--verbose"], 2, 1)])
def test_a_launch_hands_its_level_on(job: Path, tmp_path: Path, words: list[str], lines: int, details: int) -> None:
    argv = [sys.executable, "-m", "hpclbfl", "launch", "-np", "2", str(job), "--run-dir", str(tmp_path / "run"), *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, env={**os.environ})
    assert (done.returncode, done.stdout) == (0, "")
    told = done.stderr.splitlines()
    assert len([line for line in told if line.startswith("toy BSP, iid: ")]) == lines
    # Of rank 0 alone.
    assert len([line for line in told if line.startswith("hpclbfl: gradients are reduced in buckets")]) == details
    assert len([line for line in told if line.startswith("hpclbfl: starting the ranks: ")]) == details
    assert bool(told) == bool(lines)
    assert len((tmp_path / "run" / "attempts" / "000" / "log").read_text().splitlines()) == 2


def test_a_quiet_launch_that_fails_says_why_last(job: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "hpclbfl", "-q", "launch", "-np", "2", str(job), "clients=1"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 2
    line = "clients: 1 for 2 ranks leaves some without work; start fewer ranks"
    assert done.stderr.splitlines()[-1] == f"hpclbfl: error: rank 0: {line}"
