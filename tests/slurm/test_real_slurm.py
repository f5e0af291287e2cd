"""Against a real Slurm: two-rank runs, cancelled, requeued and finished; and starting and stopping that Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hpclbfl.runs.lock import TOKEN, holder
from hpclbfl.runs.log.reader import read_run
from hpclbfl.slurm.status import status_rows
from tests.devcluster.cluster import DevCluster
from tests.slurm.conftest import write_sweep
from tests.training.test_checkpoint import untimed

FAR = 150.0
"""Seconds in which things happen on a machine that others use, too."""


def profile(folder: Path, **keys: Any) -> Path:
    path = folder / "profile.yaml"
    # Two nodes of one machine have no memory in common, whatever MPI thinks.
    setup = ["export OMP_NUM_THREADS=1", "export OMPI_MCA_btl=self,tcp"]
    path.write_text(yaml.safe_dump({"time": 10, "signal_s": 60, "cpus_per_rank": 1, "setup": setup, **keys}))
    return path


def hpclbfl(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpclbfl", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=FAR)
    assert done.returncode == 0, done.stderr
    return done


def wait_for(what: Callable[[], Any], limit_s: float = FAR, poll_s: float = 0.3) -> Any:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if (found := what()) is not None and found is not False:
            return found
        time.sleep(poll_s)
    pytest.fail(f"did not happen within {limit_s:.0f} s")


def rows(folder: Path) -> dict[int, dict[str, Any]]:
    return {row["overrides"]["seed"]: row for row in status_rows(folder)}


def checkpoints(run: str) -> int:
    """Step of the newest one, 0: there is none."""
    return max((int(path.name.removeprefix("step-")) for path in Path(run).glob("checkpoints/step-*")), default=0)


def num_attempts(run: str) -> int:
    return len(list(Path(run).glob("attempts/*/rank00000.h5")))


def kill_all_of(run: str) -> None:
    """SIGKILL for a run's ranks, their launcher and the watcher over both, before any of them can say a word."""
    owner = holder(Path(run))
    assert owner is not None
    watcher = owner.processes[0].pid
    os.kill(watcher, signal.SIGSTOP)
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{TOKEN}={owner.token}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGKILL)
    os.kill(watcher, signal.SIGKILL)


def logs_of(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((folder / "slurm").glob("*_log.out")))


def queue() -> list[str]:
    return subprocess.run(["squeue", "-h", "-r"], capture_output=True, text=True, check=True).stdout.splitlines()


def assert_every_step_once(path: str) -> None:
    """Two attempts of a run with two clients: what the first had trained, the second did not train again."""
    run = read_run(path)
    assert run.num_attempts == 2 and not run.torn
    assert run.provenance["num_ranks"] == 2
    steps = run.tables["steps"]["step"].tolist()
    assert len(steps) > 4 and steps == [step for step in range(len(steps) // 2) for _ in range(2)]


@pytest.mark.slurm
def test_array_of_two_rank_runs_one_cancelled_one_killed_and_finished(
    tmp_path: Path, toy_set: Path, slurm: DevCluster
) -> None:
    """A short run and two longer ones. One is cancelled in the middle, one killed with all that might have said a
    word, as at the end of a time-out that nobody heeds; a second sweep finishes both."""
    out = tmp_path / "out"
    longer = {"stop": {"seconds": 5}, "evaluate.every_steps": 1000, "checkpoint.every_s": 0.5}
    path = write_sweep(tmp_path, toy_set, list=[{"seed": 0}, {"seed": 1, **longer}, {"seed": 2, **longer}], ranks=2)
    cluster = profile(tmp_path, launcher="srun", launcher_args=["--mpi=pmix"], max_parallel=3)
    command = ("sweep", path, "--cluster", cluster, "--dir", out)
    assert "3 runs, 2 ranks each" in hpclbfl(*command).stderr
    assert "3 runs: 0 done, 3 running or queued elsewhere, 0 to do" in hpclbfl(*command).stderr

    jobs = {seed: row["job"] for seed, row in rows(out).items()}
    ends = {1: kill_all_of, 2: lambda run: subprocess.run(["scancel", jobs[2]], check=True)}

    def end_those_that_train() -> bool:
        found = rows(out)
        for seed in [seed for seed in ends if checkpoints(found[seed]["path"])]:
            assert found[seed]["text"].startswith(f"Slurm job {jobs[seed]} on ")
            ends.pop(seed)(found[seed]["path"])
        return not ends

    wait_for(end_those_that_train)
    wait_for(lambda: not queue())
    found = rows(out)
    assert [found[seed]["state"] for seed in range(3)] == ["done", "failed", "waiting"], logs_of(out)
    assert found[1]["text"] == f"ended without a word at step {found[1]['step']}: killed, or its node was lost"
    assert f"job {jobs[2]} is being ended from outside: not requeued" in logs_of(out)
    assert found[2]["text"] == f"stopped at step {found[2]['step']}"

    assert "3 runs: 1 done, 0 running or queued elsewhere, 2 to do" in hpclbfl(*command).stderr
    wait_for(lambda: not queue())
    for seed in (1, 2):
        assert_every_step_once(rows(out)[seed]["path"])
    assert hpclbfl("status", out).stdout.splitlines()[-1] == "3 done", logs_of(out)


@pytest.mark.slurm
def test_requeued_three_times_across_unlike_nodes_it_is_bit_identical(
    tmp_path: Path, toy_set: Path, slurm: DevCluster
) -> None:
    """One rank on each of two nodes that a constraint tells apart, under mpirun; asked to stop three times as before
    the end of its time."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    longer = {"stop": {"steps": 90}, "evaluate.every_steps": 40, "checkpoint.every_steps": 3}
    path = write_sweep(tmp_path, toy_set, list=[{"seed": 0, **longer}], ranks=2)
    cluster = profile(tmp_path, launcher="mpirun", constraint={"fast": 1, "slow": 1})
    hpclbfl("sweep", path, "--cluster", cluster, "--dir", out)
    row = rows(out)[0]
    job_file = next((out / "jobs").glob("*.yaml"))
    reference = subprocess.Popen([sys.executable, "-m", "hpclbfl", "launch", str(job_file), "--run-dir", str(whole)])
    for number in range(3):
        # Once more than before, and in an attempt that is under way.
        before = checkpoints(row["path"])
        wait_for(lambda n=number, b=before: checkpoints(row["path"]) > b and num_attempts(row["path"]) > n, poll_s=0.05)
        if number == 0:
            assert " n[1-2]" in queue()[0]
        subprocess.run(["scancel", "--batch", "--signal=USR2", row["job"]], check=True)
        wait_for(lambda n=number: logs_of(out).count(f"job {row['job']} is requeued") > n)
    wait_for(lambda: not queue())
    assert reference.wait(timeout=FAR) == 0
    assert rows(out)[0]["state"] == "done", logs_of(out)

    undisturbed, run = read_run(whole), read_run(row["path"])
    assert (undisturbed.num_attempts, run.num_attempts) == (1, 4) and not run.torn
    assert run.provenance["num_ranks"] == 2 and len(run.tables["steps"]) == 2 * 90
    found = untimed(run)
    for key, value in untimed(undisturbed).items():
        assert found[key] == value, key
    first, second = (torch.load(Path(folder) / "model.pt") for folder in (whole, row["path"]))
    assert first.keys() == second.keys() and all(torch.equal(second[key], value) for key, value in first.items())


@pytest.mark.slurm
def test_racing_submitters_and_arrays_above_the_limit(tmp_path: Path, toy_set: Path, slurm: DevCluster) -> None:
    """Five runs, arrays of at most three; held in the queue, none is started. SLURM_* of another job in the shell."""
    out = tmp_path / "out"
    path = write_sweep(tmp_path, toy_set, seeds=5, ranks=2)
    cluster = profile(tmp_path, max_parallel=2, sbatch={"hold": True})
    command = [sys.executable, "-m", "hpclbfl", "sweep", str(path), "--cluster", str(cluster), "--dir", str(out)]
    leaked = {**os.environ, "SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_MEM_PER_CPU": "1", "SBATCH_ARRAY": "0-99"}
    racers = [
        subprocess.Popen(command, env=leaked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [racer.communicate(timeout=FAR)[1] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], said
    assert len(queue()) == 5
    found = rows(out)
    assert {row["state"] for row in found.values()} == {"waiting"}
    assert len({row["job"] for row in found.values()}) == 5
    assert len({row["job"].split("_")[0] for row in found.values()}) == 2
    hpclbfl("cancel", out)
    wait_for(lambda: not queue())
    assert "5 runs: 0 done, 0 running or queued elsewhere, 5 to do" in hpclbfl(*command[3:], "--dry-run").stdout


@pytest.mark.slurm
def test_a_cluster_goes_as_it_came(tmp_path: Path, dev_slurm: DevCluster) -> None:
    """Beside another one, of which it knows nothing; a job in it goes with it."""
    folder = dev_slurm.folder.parent / "d"
    cluster = DevCluster(folder)
    cluster.start()
    try:
        assert cluster.is_up() and dev_slurm.is_up()
        env = {**os.environ, "SLURM_CONF": str(cluster.conf)}
        submit = ["sbatch", "--parsable", f"--output={tmp_path / 'out'}", "--wrap", "exec sleep 60"]
        job = subprocess.run(submit, env=env, capture_output=True, text=True, check=True).stdout.strip()
        assert job == "1"
        cluster.start()
    finally:
        cluster.stop()
    assert not folder.exists() and not cluster.is_up() and dev_slurm.is_up()
    cluster.stop()
