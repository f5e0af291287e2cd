"""How commands end after a signal, or when their output is no longer read."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpclbfl.core.signals import Interrupted, StopRequest, handling, orderly_end

JOB = Path(__file__).parents[2] / "jobs" / "quickstart.yaml"
HPCLBFL = [sys.executable, "-m", "hpclbfl"]


def start(words: list[object], **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*HPCLBFL, *map(str, words)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options
    )


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2", "SIGHUP", "SIGXCPU"])
def test_a_request_to_stop_is_recorded(name: str) -> None:
    before = signal.getsignal(getattr(signal, name))
    with StopRequest() as request:
        assert not request
        os.kill(os.getpid(), getattr(signal, name))
        assert request and request.name == name
    assert signal.getsignal(getattr(signal, name)) == before


def test_what_is_ignored_from_the_start_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as request, handling((signal.SIGHUP,), lambda number, frame: None), orderly_end():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not request
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU, signal.SIGUSR1])
def test_a_command_names_the_signal_that_ends_it(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended, orderly_end():
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert ended.value.code == 128 + number
    assert capsys.readouterr().err == f"hpclbfl: error: interrupted by {signal.Signals(number).name}\n"
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interruption_in_a_finalizer_is_not_lost(number: int) -> None:
    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)
            time.sleep(0.5)

    with pytest.raises(SystemExit) as ended, orderly_end():
        Finalized()
        time.sleep(5)
    assert ended.value.code == 128 + number


def test_a_second_signal_ends_the_process_at_once() -> None:
    program = """
import os, signal, time
from hpclbfl.core.signals import orderly_end
with orderly_end():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    finally:
        # A terminal that closes sends HUP more than once.
        os.kill(os.getpid(), signal.SIGHUP)
        print("cleaning up", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, "cleaning up\n", "")


def test_a_rank_leaves_signals_to_its_launcher() -> None:
    with orderly_end({"OMPI_COMM_WORLD_SIZE": "2"}):
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_other_errors_pass() -> None:
    for error in (ValueError("mine"), SystemExit(2)):
        with pytest.raises(type(error)) as raised, orderly_end():
            raise error
        assert raised.value is error
    # An interruption that has been reported is not reported again.
    with pytest.raises(SystemExit) as ended, orderly_end():
        try:
            raise Interrupted(signal.SIGTERM)
        except Interrupted as interrupted:
            raise SystemExit(143) from interrupted
    assert type(ended.value) is SystemExit


# Long enough for a signal to come in between, at any speed.
COMMANDS: dict[str, list[object]] = {
    "watch": ["watch", "{runs}"],
    "plan": ["plan", JOB, "--out", "{out}"],
    "sharpness": ["sharpness", "{run}", "--iterations", 100_000, "--tolerance", 0, "--top", 9],
    "bench": ["bench", "log", "--rounds", 100, "--out", "{out}/bench.json"],
    "doctor": ["doctor"],
    "train": ["train", JOB, "--run-dir", "{out}"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that is done and one that is not."""
    base = tmp_path_factory.mktemp("runs")
    command = [*HPCLBFL, "train", str(JOB), "stop.epochs=0.1", "--run-dir"]
    subprocess.run([*command, str(base / "done")], check=True, capture_output=True, timeout=120)
    process = start(["train", JOB, "stop.epochs=1000", "--run-dir", base / "stopped"])
    wait_until(lambda: any((base / "stopped").glob("attempts/000/log")))
    time.sleep(1.0)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    # A single process that is asked to stop saves its state, too.
    assert process.returncode == 75
    assert json.loads((base / "stopped" / "status.json").read_text())["state"] == "requeue"
    return base


def handles_signals(pid: int) -> bool:
    """Whether a process has installed its handler for TERM."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.0, 1.2])
@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("watch", "SIGHUP"),
        ("plan", "SIGTERM"),
        ("sharpness", "SIGINT"),
        ("bench", "SIGTERM"),
        ("doctor", "SIGTERM"),
        ("train", "SIGTERM"),
    ],
)
def test_commands_end_with_128_and_the_signal(
    runs: Path, tmp_path: Path, command: str, name: str, after_s: float
) -> None:
    places = {"{runs}": runs, "{run}": runs / "done", "{out}": tmp_path}
    words = [str(word).replace("{out}", str(tmp_path)) for word in COMMANDS[command]]
    process = start([places.get(word, word) for word in words], stdout=subprocess.DEVNULL)
    wait_until(lambda: handles_signals(process.pid))
    time.sleep(after_s)
    process.send_signal(getattr(signal, name))
    _, said = process.communicate(timeout=60)
    if command == "train" and process.returncode == 75:
        return
    assert process.returncode == 128 + getattr(signal, name), said
    assert said.splitlines()[-1:] == [f"hpclbfl: error: interrupted by {name}"], said
    assert "Traceback" not in said and said.count("hpclbfl: error:") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["report", "{}"], ["export", "{}"], ["train", str(JOB), "--print-config"], ["--help"]]
)
def test_a_closed_pipe_is_not_an_error(runs: Path, words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start([word.format(runs) for word in words], stdout=writer)
    os.close(writer)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (141, "")


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_without_standard_streams_commands_work(runs: Path, closed: str) -> None:
    script = f'exec "$0" -m hpclbfl report "$1" {closed}'
    done = subprocess.run(["sh", "-c", script, sys.executable, str(runs)], timeout=60)
    assert done.returncode == 0


@pytest.mark.slow
def test_a_run_continues_without_a_reader(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [*HPCLBFL, "train", str(JOB), "stop.epochs=0.2", "--run-dir", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer)
    os.close(writer)
    assert process.wait(120) == 0
    assert (tmp_path / "run" / "DONE.json").exists()


@pytest.mark.slow
def test_a_terminal_that_closes_lets_a_run_save_its_state(tmp_path: Path) -> None:
    leader, terminal = pty.openpty()
    command = [*HPCLBFL, "train", str(JOB), "stop.epochs=1000", "--run-dir", str(tmp_path / "run")]
    # The terminal becomes that of the new session, which gets HUP when it closes.
    script = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", script, *command],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    wait_until(lambda: any(tmp_path.glob("run/attempts/000/log")))
    time.sleep(1.0)
    os.close(leader)
    assert process.wait(60) == 75
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "requeue"


SWALLOWING = """
import os, signal, sys, time
from hpclbfl.core.signals import orderly_end

with orderly_end():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    except BaseException:
        pass
    try:
        time.sleep(60)
    finally:
        # Longer than the check for a swallowed interruption takes.
        time.sleep(1.5)
        print("cleaned up", file=sys.stderr)
"""


def test_a_swallowed_interruption_is_sent_again_but_not_during_cleanup() -> None:
    done = subprocess.run([sys.executable, "-c", SWALLOWING], capture_output=True, text=True, timeout=30)
    assert done.returncode == 143
    assert done.stderr.splitlines() == ["cleaned up", "hpclbfl: error: interrupted by SIGTERM"]
