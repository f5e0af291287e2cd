"""The live table, and the tables as files."""

import csv
import json
import math
import os
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest

from hpclbfl.analysis.read.load import load
from hpclbfl.analysis.show import watch
from hpclbfl.analysis.show.export import TABLES, export
from hpclbfl.core.errors import DataError, EnvironmentFault
from hpclbfl.core.jsonfile import write_json
from hpclbfl.runs.folder import RunFolder
from hpclbfl.runs.lock import acquire, is_live
from hpclbfl.runs.log.schema import DTYPES
from hpclbfl.runs.log.writer import RunLog
from tests.analysis.conftest import two_client_run


def start(path, state="running", resumed_from_step=0):
    folder = RunFolder(path)
    attempt = folder.next_attempt()
    folder.write_config("clients: 2\n")
    if state == "running" and not is_live(path):
        acquire(path, {})
    folder.write_status(state)
    return RunLog(attempt.rank_log(0), {"rank": 0, "attempt": 0, "resumed_from_step": resumed_from_step})


def add_steps(log, steps, clients=2):
    for step in steps:
        for client in range(clients):
            log.append(
                "steps",
                step=step,
                round=0,
                epoch=step / 10,
                client=client,
                num_samples=0,
                local_batch_size=1 + 2 * client,
                loss=4.0 * client,
                t_step_s=0.05,
            )
    log.flush()


def test_progress_by_hand(tmp_path):
    with start(tmp_path / "a") as log:
        add_steps(log, range(30))
        log.append("evals", step=9, num_samples=1, split="test", top1=0.25)
        log.append("evals", step=9, num_samples=1, split="train", top1=0.75)
        log.flush()
        (run,) = watch.Watcher(tmp_path).look()
        # Losses 0 and 4 over 1 and 3 samples; two clients in turn, 0.05 s each.
        assert (run.run, run.state) == ("a", "running")
        assert run.progress == watch.Progress(30, 2.9, 3.0, 0.25, pytest.approx(10.0))
        assert 0 <= run.silent_s < 10
        add_steps(log, range(30, 31))
        assert watch.Watcher(tmp_path).look()[0].progress.steps == 31


def test_only_logs_that_changed_are_read(tmp_path, monkeypatch):
    one = start(tmp_path / "a")
    add_steps(one, range(5))
    # In the process that writes it, HDF5 touches a file whose reader it closes.
    one.close()
    with start(tmp_path / "b") as two:
        add_steps(two, range(5))
        watcher = watch.Watcher(tmp_path)
        watcher.look()
        read, original = [], watch.read_progress
        monkeypatch.setattr(watch, "read_progress", lambda log: read.append(log) or original(log))
        add_steps(two, range(5, 9))
        assert [run.progress.steps for run in watcher.look()] == [5, 9]
        assert [path.parts[-4] for path in read] == ["b"]


def test_speed_is_of_recent_steps():
    steps = np.zeros(200, DTYPES["steps"])
    steps["step"] = np.arange(200)
    steps["t_step_s"] = np.where(steps["step"] < 150, 100.0, 0.5)
    steps["local_batch_size"] = 1
    progress = watch.progress_of(steps, np.zeros(0, DTYPES["evals"]))
    assert progress.steps_per_s == pytest.approx(2.0)
    assert math.isnan(progress.top1)
    assert watch.progress_of(steps[:0], np.zeros(0, DTYPES["evals"])) == watch.Progress()


def test_a_run_that_resumes_shows_what_it_had(tmp_path):
    with start(tmp_path / "a") as log:
        add_steps(log, range(10))
        log.append("evals", step=9, num_samples=1, split="test", top1=0.5)
    with start(tmp_path / "a", resumed_from_step=10) as log:
        assert watch.Watcher(tmp_path).look()[0].progress.steps == 10
        add_steps(log, range(10, 12))
        progress = watch.Watcher(tmp_path).look()[0].progress
        assert (progress.steps, progress.top1) == (12, 0.5)


def test_states_and_order(tmp_path, capsys):
    two_client_run(tmp_path / "runs" / "done")
    two_client_run(tmp_path / "runs" / "broken", state="failed")
    two_client_run(tmp_path / "runs" / "stopped", state="requeue")
    RunFolder(tmp_path / "runs" / "begun").create()
    RunFolder(tmp_path / "runs" / "begun").write_config("clients: 1\n")
    start(tmp_path / "runs" / "live").close()
    listed = [{"id": "done"}, {"id": "next"}, {"id": "gone", "listed": False}]
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": listed}))
    runs = watch.Watcher(tmp_path).look()
    assert [(run.state, run.run) for run in runs] == [
        ("running", "runs/live"),
        ("failed", "runs/broken"),
        ("requeue", "runs/stopped"),
        ("waiting", "runs/begun"),
        ("waiting", "runs/next"),
        ("done", "runs/done"),
    ]
    watch.watch(tmp_path, once=True)
    out = capsys.readouterr().out
    assert "runs/broken: rank 1: out of memory" in out
    assert "1 running, 1 failed, 1 requeue, 2 waiting, 1 done" in out


def test_silence_is_shown(tmp_path, capsys):
    with start(tmp_path / "a") as log:
        add_steps(log, range(3))
        old = time.time() - 500
        os.utime(log.path, (old, old))
        watch.watch(tmp_path, once=True)
    assert "500 s" in capsys.readouterr().out


def test_torn_logs_do_not_stop_it(tmp_path):
    attempt = two_client_run(tmp_path / "a", state="running")
    whole = attempt.rank_log(0).read_bytes()
    for length in (0, 100, 5000, len(whole) // 2):
        attempt.rank_log(0).write_bytes(whole[:length])
        assert watch.Watcher(tmp_path).look()[0].state == "running"


def test_a_screen_has_room_for_so_many(tmp_path):
    runs = [watch.Watched(f"r{i}", "running", watch.Progress(), 0.0, "") for i in range(30)]
    group = watch.table_of(runs, tmp_path, height=20)
    assert group.renderables[0].row_count == 12
    assert "18 more not shown" in str(group.renderables[1])


def test_without_a_terminal_it_prints_again_until_all_is_over(tmp_path, monkeypatch, capsys):
    log = start(tmp_path / "a")
    add_steps(log, range(3))
    log.close()

    def finish(_):
        RunFolder(tmp_path / "a").mark_done({"step": 7, "top1": 0.5})

    monkeypatch.setattr(watch.time, "sleep", finish)
    watch.watch(tmp_path)
    out = capsys.readouterr().out
    assert out.index("1 running") < out.index("1 done")


def test_nothing_to_watch(tmp_path):
    with pytest.raises(DataError, match="holds no run"):
        watch.watch(tmp_path, once=True)


@pytest.fixture
def frames(tmp_path):
    two_client_run(tmp_path / "runs" / "a")
    two_client_run(tmp_path / "runs" / "b", seed=1)
    return load(tmp_path)


def test_parquet_comes_back(frames, tmp_path):
    written = dict(export(frames, tmp_path / "out", "parquet"))
    assert [path.name for path in written] == [f"{name}.parquet" for name in TABLES]
    assert [written[tmp_path / "out" / f"{name}.parquet"] for name in ("runs", "steps", "evals")] == [2, 80, 8]
    steps = pl.read_parquet(tmp_path / "out" / "steps.parquet")
    assert steps.sort("run", "step", "client").equals(frames.steps.collect().sort("run", "step", "client"))


def test_csv_comes_back(frames, tmp_path):
    export(frames, tmp_path / "out", "csv")
    evals = pl.read_csv(tmp_path / "out" / "evals.csv")
    assert evals["run"].to_list()[::4] == ["runs/a", "runs/b"]
    assert evals["top1"].to_list() == frames.evals["top1"].to_list()
    with (tmp_path / "out" / "columns.csv").open() as file:
        about = {(row["table"], row["column"]): row for row in csv.DictReader(file)}
    assert about["steps", "t_step_s"]["unit"] == "s"
    assert about["runs", "sync.kind"]["meaning"] == "key of the job"
    assert all(row["meaning"] for row in about.values())
    assert {column for table, column in about if table == "steps"} == set(frames.steps.collect_schema())


def test_export_that_cannot_be_written(frames, tmp_path):
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        export(frames, tmp_path / "out", "csv")


@pytest.mark.slow
def test_commands(frames, tmp_path):
    def run(*words):
        return subprocess.run([sys.executable, "-m", "hpclbfl", *words], capture_output=True, text=True, timeout=60)

    done = run("export", str(tmp_path), "--format", "csv")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, f"{tmp_path}/tables/runs.csv: 2 rows")
    done = run("watch", str(tmp_path), "--once")
    assert (done.returncode, "2 done" in done.stdout) == (0, True)
    done = run("export", str(tmp_path / "none"))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_a_run_whose_process_is_gone_has_failed(tmp_path, capsys):
    two_client_run(tmp_path / "a")
    two_client_run(tmp_path / "b", state="running")
    lock = tmp_path / "b" / "lease" / "000001.json"
    owner = json.loads(lock.read_text())
    # Ended without a word, as after a kill; nobody changes the status.
    write_json(lock, {**owner, "processes": [[owner["processes"][0][0], 2**22 - 1, "never/0"]]})
    state = {run.run: (run.state, run.text) for run in watch.Watcher(tmp_path).look()}
    lost = "ended without a word: killed, or its node was lost"
    assert state == {"a": ("done", ""), "b": ("failed", lost)}
    runs = load(tmp_path).runs
    assert (runs["state"].to_list(), runs["error"].to_list()) == (["done", "failed"], [None, lost])
