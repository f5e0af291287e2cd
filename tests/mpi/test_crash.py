"""A rank that raises ends the whole job at once, with its own error on top."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpclbfl.launch.mpirun import available_cores, bundled_environment, find_mpirun, mpirun_command
from hpclbfl.runs.folder import RunFolder
from hpclbfl.runs.log.reader import read_file
from tests.conftest import make_job

pytestmark = pytest.mark.mpi


def mpirun(size: int, *command: str) -> tuple[subprocess.CompletedProcess[str], float]:
    argv, env = mpirun_command(
        size,
        [sys.executable, *command],
        os.environ,
        cores=available_cores(),
        is_root=os.geteuid() == 0,
        mpirun=find_mpirun(),
        bundled=bundled_environment(os.environ),
    )
    begin = time.monotonic()
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120)
    return done, time.monotonic() - begin


@pytest.mark.parametrize("rank", [0, 1])
def test_a_raising_rank_ends_the_job(tmp_path: Path, toy_set: Path, rank: int) -> None:
    job = make_job(toy_set, stop={"steps": 1_000_000})
    (tmp_path / "job.yaml").write_text(job.to_yaml())
    program = str(Path(__file__).with_name("crash_program.py"))
    done, seconds = mpirun(2, program, str(tmp_path / "job.yaml"), str(tmp_path / "run"), str(rank))
    print(f"rank {rank} raised: job over after {seconds:.1f} s, start-up included, exit code {done.returncode}")
    assert done.returncode == 1
    assert seconds < 60
    error = f"hpclbfl: error: rank {rank}: step 2: ValueError: the sensor fell off"
    lines = done.stderr.splitlines()
    assert error in lines
    assert not [line for line in lines[: lines.index(error)] if "MPI_ABORT" in line or "mpirun" in line]
    status = RunFolder(tmp_path / "run").status()
    assert status is not None and status.state == "failed" and status.rank == rank
    assert "the sensor fell off" in status.error
    assert RunFolder(tmp_path / "run").done() is None
    # Two clients, two steps: what was trained before is in the rank's log.
    assert len(read_file(tmp_path / "run" / "attempts" / "000" / f"rank{rank:05d}.h5").tables["steps"]) == 4


def test_wrong_job_is_refused_once_and_with_exit_code_2(tmp_path: Path, toy_set: Path) -> None:
    (tmp_path / "job.yaml").write_text(make_job(toy_set).to_yaml())
    words = ["-m", "hpclbfl", "train", str(tmp_path / "job.yaml"), "--run-dir", str(tmp_path / "run")]
    done, _ = mpirun(2, *words, "optimizer.lrr=1")
    assert done.returncode == 2
    assert done.stderr.count("unknown key 'optimizer.lrr': did you mean 'lr'?") == 1
    done, _ = mpirun(2, *words, "clients=1")
    assert done.returncode == 2
    assert done.stderr.count("clients: 1 for 2 ranks leaves some without work") == 1
    assert not (tmp_path / "run").exists()
