"""`hpclbfl launch` under signals: what is asked to stop saves its state, and nothing is left of what is killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.mpi, pytest.mark.alone]

JOB = Path(__file__).parents[2] / "jobs" / "quickstart.yaml"
START_S, END_S = 150.0, 40.0
"""Bounds of a job's start and end on a machine that others use, too."""


class Launched:
    """A launch that trains for good, in processes that name its folder."""

    def __init__(self, folder: Path, *before: str) -> None:
        self.folder = folder
        command = [*before, sys.executable, "-m", "hpclbfl", "launch", "-np", "2", str(JOB), "stop.epochs=1000000"]
        self.stderr = folder.with_suffix(".err")
        with self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*command, "--run-dir", str(folder)], stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr
            )

    def wait_for_ranks(self) -> None:
        end = time.monotonic() + START_S
        while not self.ranks():
            assert time.monotonic() < end and self.process.poll() is None
            time.sleep(0.01)

    def wait_for_training(self) -> None:
        end = time.monotonic() + START_S
        while b"global batch" not in self.stderr.read_bytes():
            assert self.process.poll() is None and time.monotonic() < end, self.stderr.read_text()
            time.sleep(0.05)
        # Its first steps.
        time.sleep(0.5)

    def pids(self) -> dict[int, str]:
        """All live processes of the job but the launch itself, with their command lines."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if str(self.folder) in words and int(path.name) != self.process.pid:
                found[int(path.name)] = " ".join(words)
        return found

    def mpirun(self) -> int:
        return next(pid for pid, words in self.pids().items() if words.split()[0].endswith("mpirun"))

    def ranks(self) -> list[int]:
        return [pid for pid, words in self.pids().items() if " train " in words and "mpirun" not in words.split()[0]]

    def end(self) -> tuple[int, list[str]]:
        """Wait until nothing is left; the exit code and what was said."""
        code = self.process.wait(END_S)
        end = time.monotonic() + END_S
        while left := self.pids():
            assert time.monotonic() < end, left
            time.sleep(0.05)
        return code, self.stderr.read_text().splitlines()

    def state(self) -> str:
        return str(json.loads((self.folder / "status.json").read_text())["state"])

    def checkpoints(self) -> list[Path]:
        return list((self.folder / "checkpoints").glob("step-*"))


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Launched]:
    found = Launched(tmp_path / "run")
    yield found
    found.process.kill()
    for pid in found.pids():
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGXCPU", "SIGTERM", "SIGUSR2"])
def test_asked_to_stop_it_saves_its_state(launched: Launched, name: str) -> None:
    launched.wait_for_training()
    launched.process.send_signal(getattr(signal, name))
    if name in ("SIGHUP", "SIGXCPU"):
        # They come again by themselves.
        launched.process.send_signal(getattr(signal, name))
    code, said = launched.end()
    assert code == 75, said
    assert "asked to stop: saved after step" in said[-1]
    assert launched.state() == "requeue" and len(launched.checkpoints()) == 1


@pytest.mark.parametrize(("name", "code"), [("SIGHUP", 129), ("SIGXCPU", 152), ("SIGTERM", 143)])
def test_before_the_ranks_can_save_anything_the_signal_is_its_code(launched: Launched, name: str, code: int) -> None:
    launched.wait_for_ranks()
    launched.process.send_signal(getattr(signal, name))
    found, said = launched.end()
    assert (found, said) == (code, [f"hpclbfl: error: interrupted by {name}"])


@pytest.mark.parametrize("training", [False, True])
def test_a_killed_launch_takes_all_with_it(launched: Launched, training: bool) -> None:
    if training:
        launched.wait_for_training()
    launched.wait_for_ranks()
    launched.process.kill()
    assert launched.end()[0] == -signal.SIGKILL


def test_a_killed_mpirun_takes_its_ranks_with_it_and_is_named(launched: Launched) -> None:
    launched.wait_for_training()
    os.kill(launched.mpirun(), signal.SIGKILL)
    # Until now launch waited for the ranks.
    code, said = launched.end()
    assert code == 137
    assert said[-1].startswith("hpclbfl: error: ended by SIGKILL, last heard of at step ")
    assert launched.state() in ("failed", "requeue")


def test_a_killed_rank_takes_all_with_it(launched: Launched) -> None:
    launched.wait_for_training()
    os.kill(launched.ranks()[-1], signal.SIGKILL)
    code, said = launched.end()
    assert code == 137
    assert "was killed by SIGKILL (out of memory?), last heard of at step " in said[-1]


@pytest.mark.skipif(shutil.which("nohup") is None, reason="no nohup")
def test_under_nohup_it_goes_on(tmp_path: Path) -> None:
    launched = Launched(tmp_path / "run", "nohup")
    try:
        launched.wait_for_training()
        launched.process.send_signal(signal.SIGHUP)
        log = launched.folder / "attempts" / "000" / "rank00000.h5"
        size, end = log.stat().st_size, time.monotonic() + START_S
        # Rows are written on for longer than a stop would take.
        while log.stat().st_size < size + 40_000:
            assert time.monotonic() < end and launched.process.poll() is None
            time.sleep(0.1)
        assert len(launched.ranks()) == 2
        launched.process.send_signal(signal.SIGTERM)
        assert launched.end()[0] == 75
    finally:
        launched.process.kill()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--hosts", "no-such-host.invalid:2"], "mpirun cannot reach all hosts: "),
        (["OMPI_MCA_plm=no-such"], "Open MPI has no plm 'no-such' on "),
    ],
)
def test_mpiruns_own_failure_is_one_line_with_its_reason(tmp_path: Path, words: list[str], reason: str) -> None:
    environ = dict(word.split("=") for word in words if "=" in word)
    words = [word for word in words if "=" not in word]
    command = [
        sys.executable,
        "-m",
        "hpclbfl",
        "launch",
        "-np",
        "2",
        str(JOB),
        *words,
        "--run-dir",
        str(tmp_path / "r"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environ})
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert re.match(f"hpclbfl: error: {reason}", said[-1]), done.stderr
    assert "signal" not in done.stderr and "----" not in done.stderr


def test_our_error_is_the_last_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hpclbfl", "launch", "-np", "2", str(JOB), "--run-dir", str(tmp_path / "r")]
    command += ["data={name: cifar10, path: /nonexistent}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    error = (
        "hpclbfl: error: rank 0: /nonexistent: cifar10 is missing there or damaged: set data.download: true to fetch it"
    )
    assert done.stderr.splitlines() == [error]
    done = subprocess.run([*command, "--debug"], capture_output=True, text=True, timeout=120)
    # Open MPI may be ended before it can say so; then it says that it cannot.
    assert "MPI_ABORT was invoked" in done.stderr or "show_help.c" in done.stderr
    assert done.stderr.splitlines()[-1] == error
