"""Submission: what is submitted, what is left alone, and what remains when it goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import submitit.core.utils as submitit_utils

from hpclbfl.core.errors import EnvironmentFault, RunFailed
from hpclbfl.runs.lock import acquire
from hpclbfl.slurm.cancel import cancel
from hpclbfl.slurm.expand import expand
from hpclbfl.slurm.folder import SweepFolder
from hpclbfl.slurm.status import status_rows
from hpclbfl.slurm.sweep import DataSets, sweep
from hpclbfl.slurm.sweep_file import read_sweep
from tests.attempts import mark_done
from tests.slurm.conftest import BASE, FakeSlurm, write_sweep


def submitted(folder: Path) -> dict[str, list[str]]:
    return SweepFolder(folder).jobs()


def command(path: Path, folder: Path, *words: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "hpclbfl",
        "sweep",
        str(path),
        "--cluster",
        "slurm-srun",
        "--dir",
        str(folder),
        *words,
    ]


def test_arrays_of_the_clusters_size_and_a_record_of_them(
    tmp_path: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sweep(tmp_path, seeds=10, ranks=2)
    assert sweep(path, "slurm-srun", False, tmp_path / "out") == 0
    scripts = fake_slurm.scripts()
    assert [line for text in scripts for line in text.splitlines() if "--array" in line] == [
        f"#SBATCH --array=0-{size - 1}%{size}" for size in (4, 3, 3)
    ]
    rows = status_rows(tmp_path / "out")
    assert [row["job"] for row in rows] == [
        *(f"1_{i}" for i in range(4)),
        *(f"{n}_{i}" for n in (2, 3) for i in range(3)),
    ]
    assert {(row["state"], row["text"].split(" as ")[0]) for row in rows} == {("waiting", "queued")}
    # What travels to the node is the run, whole.
    task = submitit_utils.pickle_load(tmp_path / "out" / "slurm" / "2_1_submitted.pkl").args[0]
    assert task.launch.run_dir == tmp_path / "out" / "runs" / rows[5]["run"]
    assert (task.launch.ranks, task.launch.launcher, task.launch.args) == (2, "srun", ("--mpi=pmix",))
    assert task.launch.job_file.read_text().startswith("name: demo")
    assert "job 2: 3 runs, 2 ranks each" in capsys.readouterr().err
    # Again: all are in the queue.
    assert sweep(path, "slurm-srun", False, tmp_path / "out") == 0
    assert len(fake_slurm.scripts()) == 3
    assert "10 runs: 0 done, 10 running or queued elsewhere, 0 to do" in capsys.readouterr().err
    assert not (fake_slurm.folder / "sacct").exists()


def test_dry_run_prints_all_and_touches_nothing(
    tmp_path: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sweep(tmp_path, seeds=6, ranks=2, resources={"time": 30})
    before = sorted(tmp_path.rglob("*"))
    assert sweep(path, "slurm-srun", True, tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    sweep(path, "slurm-srun", False, tmp_path / "out")
    for text in fake_slurm.scripts():
        assert text in shown
    rows = status_rows(tmp_path / "out")
    for row in rows:
        assert f"  {row['run']}  seed={row['overrides']['seed']}  start\n" in shown
    # Now there are reasons to skip.
    folder = SweepFolder(tmp_path / "out")
    folder.run(rows[0]["run"]).create()
    mark_done(folder.run(rows[0]["run"]), hash=rows[0]["run"][-10:], step=10**6)
    folder.run(rows[1]["run"]).create()
    folder.run(rows[1]["run"]).write_status("failed", error="step 3: no luck")
    fake_slurm.queue("1|1|2|RUNNING|None")
    lease = acquire(folder.run(rows[3]["run"]).path, {})
    capsys.readouterr()
    sweep(path, "slurm-srun", True, tmp_path / "out")
    shown = capsys.readouterr().out
    lines = [line.split("  ")[-1] for line in shown.splitlines() if line.startswith("  demo-")]
    assert lines[:3] == ["skip: done", "again (failed: step 3: no luck)", "skip: Slurm job 1_2, running"]
    assert lines[3].startswith(f"skip: process {os.getpid()}")
    assert lines[4] == "start (job 2_1 left the queue before it began)"
    assert "6 runs: 1 done, 2 running or queued elsewhere, 3 to do" in shown
    lease.release()


def test_sbatch_failing_on_the_second_array(
    tmp_path: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_FAIL_AT", "2")
    path = write_sweep(tmp_path, seeds=10)
    with pytest.raises(RunFailed) as error:
        sweep(path, "slurm-srun", False, tmp_path / "out")
    assert str(error.value) == (
        "sbatch refused array 2 of 3 (3 runs): Batch job submission failed: Job violates accounting/QOS policy; "
        "submitted before it: 1; the same command submits the rest"
    )
    assert "sbatch: error" not in capsys.readouterr().err
    assert sum(len(jobs) for jobs in submitted(tmp_path / "out").values()) == 4
    # Once there is room again, the rest.
    monkeypatch.delenv("FAKE_FAIL_AT")
    assert sweep(path, "slurm-srun", False, tmp_path / "out") == 0
    assert sorted(len(jobs) for jobs in submitted(tmp_path / "out").values()) == [1] * 10
    assert "--array=0-2%3" in fake_slurm.scripts()[1] and len(fake_slurm.scripts()) == 3


def test_squeue_failing_leaves_alone_what_may_be_alive(
    tmp_path: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sweep(tmp_path, seeds=2)
    sweep(path, "slurm-srun", False, tmp_path / "out")
    fake_slurm.say("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    more = write_sweep(tmp_path, seeds=3)
    assert sweep(more, "slurm-srun", False, tmp_path / "out") == 0
    assert "left alone: its job 1_1 may be alive: squeue failed: slurm_load_jobs error" in capsys.readouterr().err
    assert sorted(len(jobs) for jobs in submitted(tmp_path / "out").values()) == [1, 1, 1]
    words = {row["text"].split(":")[0] for row in status_rows(tmp_path / "out")}
    assert words == {"its job 1_0 may be alive", "its job 1_1 may be alive", "its job 2 may be alive"}


def test_a_job_around_us_leaves_no_traces(
    tmp_path: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaked = {"SLURM_JOB_ID": "77", "SLURM_MEM_PER_CPU": "100", "SLURM_NTASKS": "4", "PMIX_RANK": "0"}
    leaked |= {"OMPI_COMM_WORLD_SIZE": "4", "SUBMITIT_EXECUTOR": "local", "HPCLBFL_LEASE": "token"}
    wishes = {"SBATCH_ACCOUNT": "mine", "SBATCH_PARTITION": "short", "SBATCH_TIMELIMIT": "1", "SLURM_CONF": "/own.conf"}
    for name, value in {**leaked, **wishes, "KEPT": "yes"}.items():
        monkeypatch.setenv(name, value)
    path = write_sweep(tmp_path, seeds=2, resources={"partition": "gpu"})
    before = dict(os.environ)
    assert sweep(path, "slurm-srun", False, tmp_path / "out") == 0
    assert dict(os.environ) == before
    seen = fake_slurm.environment(1)
    assert not seen.keys() & leaked.keys()
    # Account: nothing else says it; partition and time are the profile's, or nobody's.
    assert (seen["SBATCH_ACCOUNT"], seen["SLURM_CONF"], seen["KEPT"]) == ("mine", "/own.conf", "yes")
    assert not seen.keys() & {"SBATCH_PARTITION", "SBATCH_TIMELIMIT"}


def test_without_a_cluster_the_way_out_is_named(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    fake_slurm.say("sbatch", "echo 'sbatch: fatal: Could not establish a configuration source' >&2; exit 1")
    with pytest.raises(EnvironmentFault, match="no Slurm that this machine could submit to; --cluster local runs"):
        sweep(write_sweep(tmp_path), "slurm-srun", False, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_racing_submitters_submit_every_run_once(
    tmp_path: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SBATCH_S", "0.2")
    path = write_sweep(tmp_path, seeds=9)
    racers = [subprocess.Popen(command(path, tmp_path / "out"), stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [racer.communicate(timeout=120)[1] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0, 0], said
    assert sorted(len(jobs) for jobs in submitted(tmp_path / "out").values()) == [1] * 9
    assert len(fake_slurm.scripts()) == 3
    assert sum("9 to do" in text for text in said) == 1


@pytest.mark.slow
@pytest.mark.parametrize("is_terminal_group", [True, False])
def test_ctrl_c_leaves_nothing_half_written(
    tmp_path: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, is_terminal_group: bool
) -> None:
    monkeypatch.setenv("FAKE_SBATCH_S", "1.5")
    path = write_sweep(tmp_path, seeds=8)
    process = subprocess.Popen(
        command(path, tmp_path / "out"), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    end = time.monotonic() + 60
    while not (fake_slurm.folder / "lock").exists() and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.2)
    # On a terminal sbatch gets it, too.
    (os.killpg if is_terminal_group else os.kill)(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("hpclbfl: interrupted; what is submitted is written down")
    # What sbatch took is known, and whole.
    assert len(fake_slurm.scripts()) == 1
    tasks = json.loads((tmp_path / "out" / "submissions" / "000.json").read_text())["tasks"]
    assert sorted(tasks) == ["1_0", "1_1", "1_2", "1_3"]
    assert len(list((tmp_path / "out" / "slurm").glob("1_*_submitted.pkl"))) == 4
    assert not list((tmp_path / "out").rglob("*.new"))
    monkeypatch.setenv("FAKE_SBATCH_S", "0")
    assert sweep(path, "slurm-srun", False, tmp_path / "out") == 0
    assert sorted(len(jobs) for jobs in submitted(tmp_path / "out").values()) == [1] * 8


def test_runs_that_left_the_sweep_file_stay_known(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    sweep(write_sweep(tmp_path, seeds=2), "slurm-srun", False, tmp_path / "out")
    sweep(write_sweep(tmp_path, seeds=[1, 2]), "slurm-srun", False, tmp_path / "out")
    rows: list[dict[str, Any]] = status_rows(tmp_path / "out")
    assert [(row["overrides"]["seed"], row["listed"]) for row in rows] == [(1, True), (2, True), (0, False)]


def test_neither_sweep_nor_status_loads_torch(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    path, out = write_sweep(tmp_path, seeds=2), str(tmp_path / "out")
    program = (
        "import sys\nfrom hpclbfl.cli.app import main\n"
        "sys.argv = ['hpclbfl', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print(end.code)\n"
        "print('loaded:', [m for m in ('torch', 'horovod') if m in sys.modules])\n"
    )
    for words in (["sweep", str(path), "--cluster", "slurm-srun", "--dir", out], ["status", out], ["cancel", out]):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60)
        assert done.stdout.splitlines()[-2:] == ["0", "loaded: []"], done.stderr


def test_a_folder_of_an_older_version_is_gone_on_with(
    tmp_path: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sweep(tmp_path, seeds=2)
    runs = expand(read_sweep(path), path, DataSets(download=False)).runs
    folder = SweepFolder(tmp_path / "out")
    folder.run(runs[0].former_id).create()
    mark_done(folder.run(runs[0].former_id), hash=runs[0].former_id[-10:], step=10**6)
    sweep(path, "slurm-srun", True, tmp_path / "out")
    said = capsys.readouterr().out
    assert f"{runs[0].former_id}  seed=0  skip: done" in said
    assert f"{runs[1].id}  seed=1  start" in said


def test_a_finished_run_whose_stop_has_grown_is_to_do_again(
    tmp_path: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {**BASE, "stop": {"steps": 4}}
    path = write_sweep(tmp_path, base={**base, "data": {"name": "digits"}}, seeds=2)
    runs = expand(read_sweep(path), path, DataSets(download=False)).runs
    for run, step in zip(runs, (4, 3), strict=True):
        folder = SweepFolder(tmp_path / "out").run(run.id)
        folder.create()
        mark_done(folder, hash=run.digest, step=step)
    sweep(path, "slurm-srun", True, tmp_path / "out")
    said = capsys.readouterr().out
    assert f"{runs[0].id}  seed=0  skip: done" in said
    assert f"{runs[1].id}  seed=1  again (done at step 3, stop has grown)" in said
    assert "2 runs: 1 done, 0 running or queued elsewhere, 1 to do" in said


def test_the_end_of_a_schedule_that_comes_from_stop_is_part_of_the_id(tmp_path: Path) -> None:
    def ids(**sections: Any) -> list[str]:
        path = write_sweep(tmp_path, base={**BASE, "data": {"name": "digits"}, **sections})
        return [run.id for run in expand(read_sweep(path), path, DataSets(download=False)).runs]

    assert ids(stop={"epochs": 2}) == ids(stop={"epochs": 3})
    cosine = {"kind": "cosine"}
    assert ids(stop={"epochs": 2}, schedule=cosine) != ids(stop={"epochs": 3}, schedule=cosine)
    assert ids(stop={"epochs": 2}, schedule=cosine) == ids(
        stop={"epochs": 9}, schedule={"kind": "cosine", "total_epochs": 2}
    )


def test_a_grown_run_that_is_queued_is_left_alone_and_can_be_cancelled(
    tmp_path: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sweep(tmp_path, base={**BASE, "stop": {"steps": 4}, "data": {"name": "digits"}})
    (run,) = expand(read_sweep(path), path, DataSets(download=False)).runs
    folder = SweepFolder(tmp_path / "out").run(run.id)
    folder.create()
    mark_done(folder, hash=run.digest, step=3)
    sweep(path, "slurm-srun", False, tmp_path / "out")
    assert "1 run: 0 done, 0 running or queued elsewhere, 1 to do" in capsys.readouterr().err
    ((job,),) = SweepFolder(tmp_path / "out").jobs().values()
    fake_slurm.queue(f"{job}|{job}|N/A|PENDING|Priority")
    sweep(path, "slurm-srun", False, tmp_path / "out")
    assert "1 run: 0 done, 1 running or queued elsewhere, 0 to do" in capsys.readouterr().err
    cancel(tmp_path / "out")
    assert (fake_slurm.folder / "cancelled").read_text().split() == [job]


def test_a_pipe_in_place_of_a_log_blocks_nobody(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    path = write_sweep(tmp_path)
    sweep(path, "slurm-srun", False, tmp_path / "out")
    folder = SweepFolder(tmp_path / "out")
    fake_slurm.queue()
    ((job, _),) = ((job, run) for run, jobs in folder.jobs().items() for job in jobs)
    os.mkfifo(folder.job_log(job))
    assert status_rows(tmp_path / "out")[0]["text"].endswith("ended before the training began: it printed nothing")
