"""A sweep on this machine: the same folders and outcome, and an end that leaves nothing behind."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hpclbfl.runs.lock import acquire, is_live
from hpclbfl.slurm import local
from hpclbfl.slurm.expand import expand
from hpclbfl.slurm.folder import SweepFolder
from hpclbfl.slurm.local import LocalSweep, Summary
from hpclbfl.slurm.ranks import Launch
from hpclbfl.slurm.resources import ProfileConfig
from hpclbfl.slurm.status import status_rows
from hpclbfl.slurm.sweep import DataSets
from hpclbfl.slurm.sweep_file import read_sweep
from tests.slurm.conftest import write_sweep

RANK = """
import json, os, signal, sys, time
from pathlib import Path
from hpclbfl.runs.folder import RunFolder
run, seed = RunFolder(sys.argv[1]), int(sys.argv[2])
signal.signal(signal.SIGUSR2, lambda *_: sys.exit(75))
run.create()
run.write_status("running", step=0)
print("seed", seed, flush=True)
{what}
summary = {{"reason": "steps", "step": 99, "epoch": 9.0, "num_samples": 9999, "top1": 0.5}}
run.mark_done({{**summary, "hash": sys.argv[1][-10:]}})
"""


class Swept:
    """A local sweep whose ranks are a few lines of Python instead of a training."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, **keys: Any) -> None:
        path = write_sweep(tmp_path, **keys)
        self.runs = expand(read_sweep(path), path, DataSets(download=False)).runs
        self.folder = SweepFolder(tmp_path / "out")
        self.folder.write_runs("demo", path, self.runs)
        self.said: list[str] = []
        program = RANK.format(what=what)

        def command(launch: Launch, environ: Any, cores: int) -> tuple[list[str], Any]:
            seed = next(run.job.seed for run in self.runs if launch.run_dir.name == run.id)
            return [sys.executable, "-c", program, str(launch.run_dir), str(seed)], environ

        monkeypatch.setattr(local, "launch_command", command)

    def run(self, parallel: int = 2, runs: Sequence[Any] | None = None) -> Summary:
        profile = ProfileConfig(kind="local", max_parallel=parallel)
        logger, handler = logging.getLogger("hpclbfl.slurm.local"), logging.Handler()
        handler.emit = lambda record: self.said.append(record.getMessage())  # type: ignore[method-assign]
        logger.addHandler(handler)
        try:
            return LocalSweep(self.folder, profile).run(self.runs if runs is None else runs)
        finally:
            logger.removeHandler(handler)

    def states(self) -> list[str]:
        return [row["state"] for row in status_rows(self.folder.path)]

    def text(self, index: int) -> str:
        return str(status_rows(self.folder.path)[index]["text"])


def test_some_done_some_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what = "if seed == 1: sys.exit('hpclbfl: error: no luck')\nif seed == 2: os.kill(os.getpid(), signal.SIGKILL)"
    swept = Swept(tmp_path, monkeypatch, what, seeds=4)
    summary = swept.run()
    assert (summary.done, summary.failed, summary.left, summary.exit_code) == (2, 2, 0, 3)
    assert swept.states() == ["done", "failed", "failed", "done"]
    assert (swept.text(1), swept.text(2)) == ("ended with exit code 1: hpclbfl: error: no luck", "ended by SIGKILL")
    assert swept.folder.log(swept.runs[0].id).read_text() == "seed 0\n"
    ids = [run.id for run in swept.runs]
    assert (
        f"{ids[1]} seed=1: failed: ended with exit code 1: hpclbfl: error: no luck ({swept.folder.log(ids[1])})"
        in swept.said
    )
    assert f"{ids[0]} seed=0: done: top-1 50.0 %" in swept.said
    assert not any(is_live(swept.folder.run(id_).path) for id_ in ids)


@pytest.mark.slow
def test_so_many_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamps = tmp_path / "stamps"
    stamps.mkdir()
    what = (
        f"here = Path({str(stamps)!r}, str(seed)); here.touch(); time.sleep(0.3)\n"
        f"Path({str(tmp_path)!r}, f'count{{seed}}').write_text(str(len(list(here.parent.iterdir())))); here.unlink()"
    )
    assert Swept(tmp_path, monkeypatch, what, seeds=5).run(parallel=2).done == 5
    counts = [int((tmp_path / f"count{seed}").read_text()) for seed in range(5)]
    assert max(counts) == 2


def interrupt_when(ready: Path, *signals: int, pause_s: float = 0.0) -> None:
    def act() -> None:
        while not ready.exists():
            time.sleep(0.01)
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(pause_s)

    threading.Thread(target=act, daemon=True).start()


def test_ctrl_c_lets_runs_save_themselves_and_starts_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept = Swept(tmp_path, monkeypatch, f"Path({str(tmp_path / 'ready')!r}).touch()\ntime.sleep(60)", seeds=3)
    interrupt_when(tmp_path / "ready", signal.SIGINT)
    summary = swept.run(parallel=1)
    assert (summary.done, summary.failed, summary.left, summary.exit_code) == (0, 0, 3, 130)
    assert swept.states() == ["waiting"] * 3
    assert [swept.text(i) for i in range(3)] == ["stopped", "not started", "not started"]
    assert not is_live(swept.folder.run(swept.runs[0].id).path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_twice_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = (
        "for n in (signal.SIGUSR2, signal.SIGTERM): signal.signal(n, signal.SIG_IGN)\n"
        f"Path({str(tmp_path / 'ready')!r}).touch()\ntime.sleep(60)"
    )
    monkeypatch.setattr(local, "_LAST_GRACE_S", 0.3)
    swept = Swept(tmp_path, monkeypatch, deaf)
    interrupt_when(tmp_path / "ready", signal.SIGINT, signal.SIGINT, pause_s=0.5)
    begin = time.monotonic()
    assert swept.run().exit_code == 130
    assert time.monotonic() - begin < 20
    assert swept.states() == ["waiting"]


def test_a_run_in_other_hands_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept = Swept(tmp_path, monkeypatch, "", seeds=2)
    lease = acquire(swept.folder.run(swept.runs[0].id).path, {})
    summary = swept.run()
    assert (summary.done, summary.exit_code) == (1, 0)
    assert swept.said[0].startswith("[1/2] left alone: ")
    lease.release()


@pytest.mark.slow
def test_real_runs_through_the_command_line(tmp_path: Path, toy_set: Path) -> None:
    """Two ranks, one rank, and one net that does not take the images."""
    points = [{"seed": 0}, {"seed": 1, "clients": 1}, {"seed": 2, "clients": 1, "model.name": "alexnet"}]
    path = write_sweep(tmp_path, toy_set, list=points, ranks="clients", resources={"cpus_per_rank": 1})
    profile = tmp_path / "here.yaml"
    profile.write_text("{kind: local, max_parallel: 3}")
    command = [sys.executable, "-m", "hpclbfl", "sweep", str(path), "--cluster", str(profile)]
    command += ["--dir", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3, done.stderr
    assert done.stdout == "" and "\x1b" not in done.stderr
    rows = status_rows(tmp_path / "out")
    assert [row["state"] for row in rows] == ["done", "done", "failed"]
    assert rows[0]["step"] == 3 and "alexnet takes images of 63 px and more" in rows[2]["text"]
    assert "2 done, 1 failed, 0 left; the same command goes on" in done.stderr
    logs = [len(list((Path(row["path"]) / "attempts" / "000").glob("rank*.h5"))) for row in rows[:2]]
    assert logs == [2, 1]
    shown = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, timeout=60).stdout
    assert shown.count("skip: done") == 2 and "again (failed: " in shown
    assert f"hpclbfl train {tmp_path / 'out' / 'jobs'}" in shown
