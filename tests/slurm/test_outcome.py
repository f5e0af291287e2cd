"""What an attempt's end means, and what the watcher on the node does about it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hpclbfl.launch.children import module_command
from hpclbfl.runs.folder import RunFolder
from hpclbfl.runs.lock import TOKEN, acquire
from hpclbfl.slurm import worker
from hpclbfl.slurm.outcome import IDLE_STOPS, Outcome, Tally, conclude
from hpclbfl.slurm.ranks import Launch, Stop, launch_command
from hpclbfl.slurm.worker import Task, may_requeue, run_task
from tests.attempts import mark_done
from tests.slurm.conftest import FakeSlurm


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create()
    return folder


def test_done(run: RunFolder) -> None:
    mark_done(run, hash="x", step=20, top1=0.5)
    outcome = conclude(run, None, 0, False, "")
    assert (outcome.word, str(outcome), outcome.step) == ("done", "done: top-1 50.0 %", 20)


@pytest.mark.parametrize(("code", "was_asked"), [(75, False), (140, True), (137, True), (1, True)])
def test_who_was_asked_to_stop_or_says_so_is_stopped(run: RunFolder, code: int, was_asked: bool) -> None:
    run.write_status("running", step=0)
    assert conclude(run, None, code, was_asked, "").word == "stopped"
    assert run.status().state == "requeue"


def test_a_launcher_that_killed_late_ranks_does_not_hide_their_checkpoint(run: RunFolder) -> None:
    run.write_status("requeue", step=7)
    assert conclude(run, None, 137, False, "").word == "stopped"
    assert run.status().step == 7


def test_failures_keep_the_ranks_own_words(run: RunFolder) -> None:
    run.write_status("failed", error="rank 1: step 3: no luck")
    for was_asked in (False, True):
        outcome = conclude(run, None, 1, was_asked, "noise")
        assert (outcome.word, outcome.text) == ("failed", "rank 1: step 3: no luck")


@pytest.mark.parametrize(
    ("code", "text"),
    [(137, "ended by SIGKILL"), (2, "ended with exit code 2: unknown net"), (0, "ended without finishing the run")],
)
def test_ranks_that_could_not_say_anything(run: RunFolder, code: int, text: str) -> None:
    run.write_status("running", step=0)
    assert conclude(run, None, code, False, "unknown net").text == text
    assert run.status().error == text


def test_the_error_of_an_earlier_attempt_is_not_this_ones(run: RunFolder) -> None:
    run.write_status("failed", error="of yesterday")
    assert conclude(run, run.status(), 139, False, "").text == "ended by SIGSEGV"


def failed(step: int | None) -> Outcome:
    return Outcome("failed", 1, "", step)


def test_tally_counts_attempts_without_progress(tmp_path: Path) -> None:
    tally = Tally.read(tmp_path / "tally.json", "12")
    for step, idle in ((10, 1), (10, 2), (12, 1), (11, 2), (None, 3)):
        tally = tally.after(failed(step))
        assert tally.idle == idle
    assert not tally.wants_more(failed(None), retries=2)
    tally.write(tmp_path / "tally.json")
    assert Tally.read(tmp_path / "tally.json", "12") == tally
    # Submitted again: new attempts.
    assert Tally.read(tmp_path / "tally.json", "13").idle == 0
    (tmp_path / "tally.json").write_text("{")
    assert Tally.read(tmp_path / "tally.json", "12").idle == 0


def test_what_is_started_again() -> None:
    assert Tally("1", idle=2).wants_more(failed(0), retries=2)
    assert not Tally("1", idle=3).wants_more(failed(0), retries=2)
    assert not Tally("1").wants_more(Outcome("failed", 2, "a wrong job stays wrong", None), retries=2)
    assert not Tally("1").wants_more(Outcome("done", 0, "", 9), retries=2)
    stopped = Outcome("stopped", 75, "", 5)
    assert Tally("1").after(stopped) == Tally("1", idle=0, step=5)
    # A job whose signal comes before its first step would come back for ever.
    assert Tally("1", idle=IDLE_STOPS).wants_more(stopped, retries=0)
    assert not Tally("1", idle=IDLE_STOPS + 1).wants_more(stopped, retries=0)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("JobId=1 JobState=RUNNING Reason=None RunTime=00:00:10 TimeLimit=00:10:00 PreemptTime=None", True),
        ("JobId=1 JobState=COMPLETING RunTime=00:00:10 TimeLimit=00:10:00 PreemptTime=None", False),
        ("JobId=1 JobState=COMPLETING RunTime=00:00:10 TimeLimit=UNLIMITED PreemptTime=None", False),
        ("JobId=1 JobState=COMPLETING RunTime=00:10:02 TimeLimit=00:10:00 PreemptTime=None", True),
        ("JobId=1 JobState=COMPLETING RunTime=1-00:00:02 TimeLimit=1-00:00:00", True),
        ("JobId=1 JobState=COMPLETING RunTime=00:01:00 TimeLimit=00:10:00 PreemptTime=2026-01-01T00:00:00", True),
        ("", False),
    ],
)
def test_cancelled_jobs_do_not_come_back(shown: str, expected: bool) -> None:
    assert may_requeue(shown) is expected


def test_stop_turns_what_slurm_sends_into_one_signal(tmp_path: Path) -> None:
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGUSR2, lambda *_: sys.exit(75))\n"
        f"open({str(tmp_path / 'ready')!r}, 'w').close()\n"
        "time.sleep(60)\n"
    )

    def tell() -> None:
        while not (tmp_path / "ready").exists():
            pass
        os.kill(os.getpid(), signal.SIGCONT)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        threading.Thread(target=tell).start()
        assert stop.run([sys.executable, "-c", program], os.environ) == 75
        assert stop.received == [signal.SIGTERM]
        # Told before it began: it does not begin.
        assert stop.run(["/nowhere"], os.environ) == 75
    assert signal.getsignal(signal.SIGTERM) is before


def test_stop_hands_on_what_came_while_the_command_was_being_started(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(subprocess.Popen):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)  # type: ignore[call-overload]
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(subprocess, "Popen", Late)
    with Stop() as stop:
        assert stop.run(["sleep", "60"], os.environ) == 128 + signal.SIGUSR2
        assert stop.received == [signal.SIGTERM]


def task(run: RunFolder) -> Task:
    launch = Launch(run.path / "job.yaml", run.path, 2, "srun", cpus_per_rank=3, args=("--mpi=pmix",))
    return Task(launch, 2, run.path)


def test_srun_gets_what_a_step_does_not_inherit(run: RunFolder) -> None:
    argv, env = launch_command(task(run).launch, {"PATH": "/bin"})
    assert argv[:5] == ["srun", "--kill-on-bad-exit=1", "--ntasks=2", "--cpus-per-task=3", "--mpi=pmix"]
    assert argv[5:] == [
        *module_command("hpclbfl", "train"),
        str(run.path / "job.yaml"),
        "--run-dir",
        str(run.path),
    ]
    assert env["OMP_NUM_THREADS"] == "3"
    assert launch_command(task(run).launch, {"OMP_NUM_THREADS": "1"})[1]["OMP_NUM_THREADS"] == "1"


def test_local_ranks_see_no_job_around_them(run: RunFolder) -> None:
    leaked = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "PMIX_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "HOME": "/h"}
    for ranks in (1, 2):
        argv, env = launch_command(Launch(run.path / "job.yaml", run.path, ranks, "local"), leaked, cores=1)
        assert not env.keys() & (leaked.keys() - {"HOME"}) and env["HOME"] == "/h"
        assert ("mpirun" in argv[0]) is (ranks == 2)


def slurm_task(monkeypatch: pytest.MonkeyPatch, fake: FakeSlurm, ranks_do: str) -> None:
    fake.say("squeue", "echo '12|12|3|RUNNING|None'")
    fake.say("scontrol", 'echo "$@" >>"$FAKE/told"; echo "JobId=12 JobState=RUNNING"')
    fake.say("srun", f'echo "${TOKEN}" >"$FAKE/token"; {ranks_do}')
    monkeypatch.setattr(worker, "REQUEUE_WAIT_S", 0.0)
    for name, value in {"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}.items():
        monkeypatch.setenv(name, value)


def told(fake: FakeSlurm) -> list[str]:
    path = fake.folder / "told"
    return path.read_text().splitlines() if path.exists() else []


def test_a_stopped_run_is_requeued_and_its_lease_is_free(
    run: RunFolder, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm_task(monkeypatch, fake_slurm, "exit 75")
    with pytest.raises(SystemExit) as ended:
        run_task(task(run))
    assert ended.value.code == 75
    assert told(fake_slurm) == ["show job --oneliner 12_3", "requeue 12_3"]
    assert (fake_slurm.folder / "token").read_text().strip()
    acquire(run.path, {}).release()


def test_a_failing_run_is_requeued_so_often_and_no_more(
    run: RunFolder, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm_task(monkeypatch, fake_slurm, "exit 9")
    codes = []
    for _ in range(3):
        with pytest.raises(SystemExit) as ended:
            run_task(task(run))
        codes.append(ended.value.code)
    assert codes == [75, 75, 9]
    assert told(fake_slurm).count("requeue 12_3") == 2
    assert "3 attempts in a row made no progress; not restarted" in capsys.readouterr().err
    assert run.status().state == "failed"


def test_a_run_that_is_done_or_owned_is_left_alone(
    run: RunFolder, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm_task(monkeypatch, fake_slurm, 'touch "$FAKE/started"')
    lease = acquire(run.path, {})
    run_task(task(run))
    assert "left alone: " in capsys.readouterr().err
    lease.release()
    job = {"data": {"name": "digits"}, "model": {"name": "resnet8"}, "stop": {"steps": 9}}
    task(run).launch.job_file.write_text(json.dumps(job))
    mark_done(run, step=9)
    run_task(task(run))
    assert "already done" in capsys.readouterr().err
    assert not (fake_slurm.folder / "started").exists()
    # Damaged, it is left to training, which goes on from the checkpoint and tells.
    (run.path / "DONE.json").write_text("{")
    with pytest.raises(SystemExit):
        run_task(task(run))
    assert (fake_slurm.folder / "started").exists()
    assert "ended without finishing the run" in capsys.readouterr().err
    (fake_slurm.folder / "started").unlink()
    mark_done(run, step=9)
    # It has been given more steps.
    task(run).launch.job_file.write_text(json.dumps({**job, "stop": {"steps": 10}}))
    run_task(task(run))
    assert (fake_slurm.folder / "started").exists()


def test_a_requeue_that_slurm_refuses_is_said(
    run: RunFolder, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm_task(monkeypatch, fake_slurm, "exit 75")
    fake_slurm.say("scontrol", "echo 'slurm_update error: Requested operation is presently disabled' >&2; exit 1")
    with pytest.raises(SystemExit) as ended:
        run_task(task(run))
    assert ended.value.code == 75
    said = capsys.readouterr().err
    assert (
        "job 12_3 cannot be requeued: scontrol failed: slurm_update error" in said and "the next hpclbfl sweep" in said
    )
