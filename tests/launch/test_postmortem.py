"""What a launcher says of ranks that could not speak: the words of mpirun and srun, and what the run folder tells."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import hpclbfl.launch.postmortem
from hpclbfl.config.job import JobConfig, parse_job
from hpclbfl.core.signals import signal_name
from hpclbfl.launch.messages import Death, find_death
from hpclbfl.launch.postmortem import LaunchedRun, explain, launch_run
from hpclbfl.runs.folder import RunFolder
from hpclbfl.runs.lock import acquire
from tests.attempts import add_attempt

RULE = "-" * 74 + "\n"
KILLED = (
    f"{RULE}Primary job  terminated normally, but 1 process returned\na non-zero exit code.\n{RULE}"
    f"{RULE}mpirun noticed that process rank 1 with PID 0 on node n7 exited on signal 9 (Killed).\n{RULE}"
)
IMPROPER = "mpirun has exited due to process rank 1 with PID 0 on\nnode n7 exiting improperly. There are three reasons"
CODE = "The first process to do so was:\n\n  Process name: [[43212,1],3]\n  Exit code:    7\n"
SRUN = (
    "srun: error: n2: task 1: Terminated\nsrun: error: n7: task 3: Killed\n"
    "srun: launch/slurm: _step_signal: Terminating StepId=12.0\nsrun: error: n1: tasks 0-1: Terminated\n"
)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (KILLED, "rank 1 on n7 was killed by SIGKILL (out of memory?)"),
        (KILLED.replace("signal 9 (Killed)", "signal 11 (Segmentation fault)"), "rank 1 on n7 was ended by SIGSEGV"),
        (IMPROPER, "rank 1 on n7 ended too early, with exit code 0"),
        (CODE, "rank 3 ended too early, with exit code 7"),
        (SRUN, "rank 3 on n7 was killed by SIGKILL (out of memory?)"),
        ("srun: error: n7: task 2: Out Of Memory\n", "rank 2 on n7 was killed: out of memory"),
        ("srun: error: n7: task 2: Segmentation fault (core dumped)\n", "rank 2 on n7 was ended by SIGSEGV"),
        ("srun: error: n7: tasks 4-7: Exited with exit code 9\n", "rank 4 on n7 ended too early, with exit code 9"),
    ],
)
def test_launchers_name_the_rank_that_ended_first(said: str, expected: str) -> None:
    assert str(find_death(said)) == expected


@pytest.mark.parametrize(
    "said", ["", "Terminated", KILLED.replace("signal 9", "signal 15"), "srun: error: n1: task 0: Terminated\n"]
)
def test_who_was_ended_by_wish_is_not_blamed(said: str) -> None:
    assert find_death(said) is None


def some_run(path: Path, saved: tuple[int, ...] = (30,)) -> RunFolder:
    """Killed in an attempt that had resumed from step 30; rank 1 logged one step less than rank 0."""
    run = RunFolder(path)
    add_attempt(run, 0, [range(33), range(33)])
    add_attempt(run, 30, [range(30, 38), range(30, 37)])
    for step in saved:
        (run.checkpoints / f"step-{step:09d}").mkdir()
    (run.checkpoints / ".step-000000040").mkdir()
    return run


def note(run: RunFolder, rank: int, step: int) -> None:
    text = json.dumps({"step": step, "waits": False, "time": 0.0})
    (run.attempts()[-1].path / f"rank{rank:05d}.note").write_text(text)


def test_the_newest_of_log_and_note_counts(tmp_path: Path) -> None:
    run = some_run(tmp_path, saved=(20, 30))
    begin = "rank 1 on n7 was killed by SIGKILL (out of memory?)"
    assert explain(run, 137, KILLED) == f"{begin}, last heard of at step 37; the last checkpoint is of step 30"
    note(run, 1, 36)
    assert explain(run, 137, KILLED) == f"{begin}, last heard of at step 37; the last checkpoint is of step 30"
    note(run, 1, 41)
    assert explain(run, 137, KILLED) == f"{begin}, last heard of at step 41; the last checkpoint is of step 30"
    assert explain(None, 137, KILLED) == f"{begin}, before the training began"


def test_without_a_checkpoint_or_a_log_that_can_be_read(tmp_path: Path) -> None:
    run = some_run(tmp_path, saved=())
    assert str(explain(run, 137, KILLED)).endswith(", last heard of at step 37; there is no checkpoint yet")
    run.attempts()[-1].rank_log(1).write_bytes(b"torn")
    assert explain(run, 137, KILLED) == "rank 1 on n7 was killed by SIGKILL (out of memory?)"
    # Resumed, and killed before its first row was flushed.
    add_attempt(run, 30, [(), ()])
    assert "last heard of at step 30" in str(explain(run, 137, KILLED))


def test_a_rank_that_spoke_for_itself_is_left_the_last_word(tmp_path: Path) -> None:
    run = some_run(tmp_path)
    own = "hpclbfl: error: rank 3: step 2: ValueError: the sensor fell off\n"
    assert explain(run, 1, own + CODE) is None
    # The one that missed another was not the first to go.
    assert str(explain(run, 137, own + KILLED)).startswith("rank 1 on n7 was killed")
    assert str(explain(run, 1, own + IMPROPER)).startswith("rank 1 on n7 ended too early")
    assert explain(run, 1, own + "MPI_ABORT was invoked on rank 1\n" + IMPROPER) is None
    assert explain(run, 1, "Traceback") is None
    heard = ", last heard of at step 38; the last checkpoint is of step 30"
    assert explain(run, 143, "") == f"ended by SIGTERM{heard}"
    assert explain(run, 143, "", 15) == f"interrupted by SIGTERM{heard}"
    assert explain(run, 75, "", 15) is None
    # A code above 128 is a signal's only where there is such a signal.
    assert explain(run, 255, "") is None
    assert explain(run, 255, "", always=True) == f"mpirun ended with exit code 255 and does not say why{heard}"
    assert explain(run, 137, "") == "ended by SIGKILL, last heard of at step 38; the last checkpoint is of step 30"


@pytest.fixture
def job() -> JobConfig:
    return parse_job(
        {
            "name": "demo",
            "clients": 2,
            "data": {"name": "digits"},
            "model": {"name": "resnet8"},
            "batching": {"local_batch_size": 4},
            "stop": {"steps": 3},
        },
        "demo.yaml",
    )


def test_a_run_without_a_given_folder_is_found_by_its_job(
    tmp_path: Path, job: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other, mine = RunFolder("runs/demo-0000000000"), RunFolder("runs/demo-1111111111")
    launched = LaunchedRun(job, None)
    assert launched.find() is None
    for run, seed in ((other, 1), (mine, 0)):
        run.create()
        run.write_config(job.model_copy(update={"seed": seed}).to_yaml())
        run.write_status("running", step=0)
    found = launched.find()
    assert found is not None and found.path == mine.path
    # What stood there before is of an earlier launch.
    assert LaunchedRun(job, None).find() is None


def test_the_status_is_written_for_those_who_could_not(
    tmp_path: Path, job: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched, unresumable = LaunchedRun(job, tmp_path), LaunchedRun(job, tmp_path, resumes=False)
    run = some_run(tmp_path)
    assert launched.record_end(137, KILLED) == (
        "rank 1 on n7 was killed by SIGKILL (out of memory?), before the training began"
    )
    run.write_status("running", step=30)
    line = launched.record_end(137, KILLED)
    error = (
        "rank 1 on n7 was killed by SIGKILL (out of memory?), last heard of at step 37; the last checkpoint is of "
        "step 30"
    )
    assert line == f"{error}; the same command goes on from there"
    status = run.status()
    assert (status.state, status.error) == ("failed", error)
    assert unresumable.record_end(137, KILLED) == f"{error}; the same command starts anew"
    # Somebody else has gone on with it: the status is theirs.
    run.write_status("running", step=30)
    monkeypatch.setattr(hpclbfl.launch.postmortem, "LINGER_S", 0.2)
    lock = acquire(tmp_path, {})
    assert launched.record_end(137, KILLED) == line
    assert run.status().state == "running"
    lock.release()


def test_a_rank_that_outlives_its_launcher_for_a_moment_is_nobody_else(
    tmp_path: Path, job: JobConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched, run = LaunchedRun(job, tmp_path), some_run(tmp_path)
    run.write_status("running", step=30)
    looks = iter([True, True, False])
    monkeypatch.setattr(
        hpclbfl.launch.postmortem,
        "holder",
        lambda folder: SimpleNamespace(processes=[SimpleNamespace(is_running=next(looks))]),
    )
    launched.record_end(137, KILLED)
    status = run.status()
    assert status is not None and status.state == "failed" and list(looks) == []


def test_stderr_goes_on_to_ours_and_its_end_is_kept(
    tmp_path: Path, job: JobConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    mpirun = tmp_path / "mpirun"
    mpirun.write_text(f"#!/bin/sh\nseq 1 40000 >&2\ncat >&2 <<'E'\n{KILLED}E\nexit 137\n")
    mpirun.chmod(0o755)
    monkeypatch.setattr("hpclbfl.launch.mpirun.find_mpirun", lambda: str(mpirun))
    assert launch_run(job, tmp_path / "run", 2, [sys.executable]) == 137
    lines = capfd.readouterr().err.splitlines()
    assert lines[:40000] == [str(number) for number in range(1, 40001)]
    error = "hpclbfl: error: rank 1 on n7 was killed by SIGKILL (out of memory?), before the training began"
    # What mpirun has to say about it is left out, but for those who want to see all.
    assert lines[40000:] == [error]
    assert launch_run(job, tmp_path / "run", 2, [sys.executable], debug=True) == 137
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1] == error and lines[40000:-1] == KILLED.splitlines()


def test_what_outlives_mpirun_holds_nobody_up(
    tmp_path: Path, job: JobConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    mpirun = tmp_path / "mpirun"
    mpirun.write_text(f"#!/bin/sh\nsleep 60 & echo $! >{tmp_path}/pid\nexit 75\n")
    mpirun.chmod(0o755)
    monkeypatch.setattr("hpclbfl.launch.mpirun.find_mpirun", lambda: str(mpirun))
    monkeypatch.setattr("hpclbfl.launch.relay.LISTEN_S", 0.1)
    try:
        assert launch_run(job, tmp_path / "run", 2, [sys.executable]) == 75
        # It still runs: the launcher did not wait for its end.
        os.kill(int((tmp_path / "pid").read_text()), 0)
    finally:
        os.kill(int((tmp_path / "pid").read_text()), 9)
    assert capfd.readouterr().err == ""


def test_a_signal_without_a_name_is_still_a_number() -> None:
    assert signal_name(40) == "signal 40"
    assert str(Death(2, "", 40)) == "rank 2 was ended by signal 40"
