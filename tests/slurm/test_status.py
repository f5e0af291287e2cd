"""What has become of runs, and the commands status and cancel."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpclbfl.core.errors import ConfigError, EnvironmentFault, RunFailed
from hpclbfl.core.process import process_of
from hpclbfl.runs.lock import acquire
from hpclbfl.runs.log.schema import DTYPES
from hpclbfl.runs.log.writer import RunLog
from hpclbfl.slurm.cancel import cancel
from hpclbfl.slurm.folder import SweepFolder
from hpclbfl.slurm.status import print_status, status_rows
from hpclbfl.slurm.sweep import sweep
from tests.attempts import mark_done
from tests.runs.test_lock import ELSEWHERE, owner
from tests.slurm.conftest import FakeSlurm, write_sweep


@pytest.fixture
def swept(tmp_path: Path, fake_slurm: FakeSlurm) -> SweepFolder:
    """Four runs, submitted as 1_0 to 1_3."""
    sweep(write_sweep(tmp_path, seeds=4), "slurm-srun", False, tmp_path / "out")
    return SweepFolder(tmp_path / "out")


def ids(folder: SweepFolder) -> list[str]:
    return [entry.id for entry in folder.entries()]


def row(folder: SweepFolder, index: int = 0) -> dict[str, Any]:
    return status_rows(folder.path)[index]


def log_steps(folder: SweepFolder, run: str, attempt: int, steps: range, top1: float | None = None) -> None:
    made = folder.run(run).attempt(attempt)
    made.path.mkdir(parents=True)
    attributes: dict[str, str | int | float] = {
        "config": "",
        "provenance": "",
        "rank": 0,
        "attempt": attempt,
        "resumed_from_step": steps.start,
    }
    with RunLog(made.rank_log(0), attributes) as log:
        for step in steps:
            values = np.zeros((), DTYPES["steps"])
            values["step"], values["epoch"], values["loss"] = step, (step + 1) / 4, 1.0
            log.append_row("steps", tuple(values.tolist()))
        if top1 is not None:
            log.append(
                "evals", step=steps[-1], epoch=1.0, num_samples=1, elapsed_s=1.0, split="test", loss=1.0, top1=top1
            )


def test_done(swept: SweepFolder, fake_slurm: FakeSlurm) -> None:
    fake_slurm.queue()
    run = swept.run(ids(swept)[0])
    run.create()
    mark_done(run, hash=ids(swept)[0][-10:], step=30, epoch=2.0, top1=0.75)
    found = row(swept)
    assert (found["state"], found["step"], found["epoch"], found["top1"]) == ("done", 30, 2.0, 0.75)
    mark_done(run, hash="0123456789")
    assert row(swept)["state"] != "done"


@pytest.mark.parametrize("value", ["x", [1], {"a": 1}, True, 10**30, float("nan"), float("inf"), "\x1b[31m"])
def test_numbers_that_are_none(
    swept: SweepFolder, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str], value: Any
) -> None:
    fake_slurm.queue()
    run = swept.run(ids(swept)[0])
    run.create()
    done = {"hash": ids(swept)[0][-10:], "step": value, "epoch": value, "top1": value}
    (run.path / "DONE.json").write_text(json.dumps(done))
    found = row(swept)
    assert (found["state"], found["step"], found["epoch"], found["top1"]) == ("failed", None, None, None)
    assert "DONE.json: is damaged: " in found["text"]
    capsys.readouterr()
    print_status(swept.path, as_json=False)
    shown = capsys.readouterr().out
    assert "1 failed, 3 waiting" in shown
    assert "\x1b" not in shown


def test_running_with_step_and_accuracy_over_attempts(swept: SweepFolder, fake_slurm: FakeSlurm) -> None:
    fake_slurm.queue("1|1|0|RUNNING|None")
    assert (row(swept)["state"], row(swept)["text"]) == ("running", "Slurm job 1_0, running")
    log_steps(swept, ids(swept)[0], 0, range(8), top1=0.5)
    log_steps(swept, ids(swept)[0], 1, range(6, 10))
    acquire(swept.run(ids(swept)[0]).path, {}, me=owner(ELSEWHERE, slurm="1_0"))
    found = row(swept)
    assert (found["state"], found["text"], found["job"]) == ("running", "Slurm job 1_0 on another-host", "1_0")
    assert (found["step"], found["epoch"], found["top1"]) == (10, 2.5, 0.5)


def test_requeued_queued_stopped_lost_failed(swept: SweepFolder, fake_slurm: FakeSlurm) -> None:
    run = swept.run(ids(swept)[0])
    run.create()
    acquire(run.path, {}, me=owner(slurm="1_0"))
    fake_slurm.queue("1|1|0|PENDING|BeginTime")
    run.write_status("requeue")
    assert (row(swept)["state"], row(swept)["text"]) == ("waiting", "requeued as 1_0")
    fake_slurm.queue()
    assert (row(swept)["state"], row(swept)["text"]) == ("waiting", "stopped")
    run.write_status("running")
    assert row(swept)["text"] == "ended without a word: killed, or its node was lost"
    run.write_status("failed", error="rank 1: step 4: no luck")
    assert (row(swept)["state"], row(swept)["text"]) == ("failed", "rank 1: step 4: no luck")
    swept.job_log("1_1").write_text(
        "module: command not found\nhpclbfl: error: no mpirun found\nsubmitit INFO bye\n----\n"
    )
    assert row(swept, 1)["text"] == "job 1_1 ended before the training began: hpclbfl: error: no mpirun found"
    assert row(swept, 1)["state"] == "failed"
    assert (row(swept, 2)["state"], row(swept, 2)["text"]) == ("waiting", "job 1_2 left the queue before it began")


def test_table_without_a_terminal(swept: SweepFolder, fake_slurm: FakeSlurm) -> None:
    run = swept.run(ids(swept)[0])
    run.create()
    mark_done(run, hash=ids(swept)[0][-10:], step=30, top1=0.754)
    command = [sys.executable, "-m", "hpclbfl", "status", str(swept.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "\x1b" not in done.stdout and done.stderr == ""
    lines = [line.split() for line in done.stdout.splitlines() if "seed=" in line]
    # Queued again, it would go on if its end had moved.
    assert lines[0] == [ids(swept)[0][-10:], "seed=0", "done", "30", "75.4", "%", "queued", "as", "1_0,", "Priority"]
    assert lines[1] == [ids(swept)[1][-10:], "seed=1", "waiting", "-", "-", "queued", "as", "1_1,", "Priority"]
    assert done.stdout.splitlines()[-1] == "1 done, 3 waiting"


def test_json(swept: SweepFolder, capsys: pytest.CaptureFixture[str]) -> None:
    print_status(swept.path, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [row["overrides"] for row in found] == [{"seed": seed} for seed in range(4)]
    assert found == status_rows(swept.path)


def test_not_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no sweep.json in it; give the folder of a sweep"):
        status_rows(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        cancel(tmp_path / "none")


def test_cancel_names_jobs_that_live(
    swept: SweepFolder, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_slurm.queue("1|1|0|RUNNING|None", "2|1|1|PENDING|Priority", "3|1|2|COMPLETED|None")
    cancel(swept.path)
    assert (fake_slurm.folder / "cancelled").read_text() == "1_0 1_1\n"
    assert capsys.readouterr().err == "cancelled: job 1_0, 1_1\n"
    fake_slurm.queue()
    cancel(swept.path)
    assert capsys.readouterr().err == "nothing is running or queued\n"


def test_cancel_tells_processes_here_and_names_those_elsewhere(
    swept: SweepFolder, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_slurm.queue()
    sleeper = subprocess.Popen(["sleep", "60"])
    acquire(swept.run(ids(swept)[0]).path, {}, me=owner(process_of(sleeper.pid)))
    acquire(swept.run(ids(swept)[1]).path, {}, me=owner(ELSEWHERE))
    with pytest.raises(RunFailed, match=f"not cancelled: {ids(swept)[1]} is run by process 1 on another-host"):
        cancel(swept.path)
    assert sleeper.wait(timeout=10) == -15
    assert capsys.readouterr().err == f"stopping on this machine: process {sleeper.pid}\n"


def test_cancel_says_when_slurm_does_not_answer(
    swept: SweepFolder, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    fake_slurm.say("scancel", "echo 'scancel: error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(RunFailed, match=r"not cancelled: 1_0, 1_1, 1_2, 1_3: scancel failed: scancel: error: Unable"):
        cancel(swept.path)


def test_cancel_tries_again_what_is_just_being_requeued(
    swept: SweepFolder, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    fake_slurm.queue("1|1|0|RUNNING|None", "2|1|1|COMPLETING|None")
    refusal = "scancel: error: Kill job error on job id 1_0: Job can not be altered now, try again later"
    fake_slurm.say(
        "scancel",
        f'echo "$@" >>"$FAKE/cancelled"; [ $(wc -l <"$FAKE/cancelled") -ge 2 ] || {{ echo "{refusal}" >&2; exit 1; }}',
    )
    cancel(swept.path)
    assert (fake_slurm.folder / "cancelled").read_text() == "1_0 1_1\n1_0\n"
    assert capsys.readouterr().err.startswith("cancelled: job 1_0, 1_1")


@pytest.mark.parametrize("id_", ["../../elsewhere", "/etc", "a/b", "", "a\nb", "x" * 300])
def test_a_list_of_runs_that_leads_elsewhere_is_refused(swept: SweepFolder, id_: str) -> None:
    values = json.loads(swept.manifest.read_text())
    values["runs"][0]["id"] = id_
    swept.manifest.write_text(json.dumps({key: value for key, value in values.items() if key != "checksum"}))
    with pytest.raises(
        EnvironmentFault,
        match=r"sweep.json: is damaged: runs.0.id: .*; hpclbfl sweep writes it anew once it is removed$",
    ):
        status_rows(swept.path)


@pytest.mark.parametrize("job", ["--user=root", "1 2", "1_", "-1", "1_2_3", "\u0661"])
def test_jobs_that_are_none_are_refused_and_never_cancelled(
    swept: SweepFolder, job: str, fake_slurm: FakeSlurm
) -> None:
    (swept.path / "submissions" / "000.json").write_text(json.dumps({"tasks": {job: ids(swept)[0]}}))
    with pytest.raises(
        EnvironmentFault, match=r"000.json: is damaged: tasks\..*; it records which jobs were submitted$"
    ):
        cancel(swept.path)
    assert not (fake_slurm.folder / "cancelled").exists()
