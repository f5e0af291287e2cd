"""Processes that end with the one that started them, and start without the working folder on the path."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpclbfl.launch.children import end_session, module_command, tethered

JOB = Path(__file__).parents[2] / "jobs" / "quickstart.yaml"


def is_gone(pid: int) -> bool:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def parent_of(child: str, tmp_path: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A process that runs `child`, lines of Python, and the number of the process that these write to `pid`."""
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '/nowhere')}"}
    process = subprocess.Popen([sys.executable, "-c", child, str(tmp_path / "pid")], env=environ)
    end = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().endswith("\n"):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    return process, int((tmp_path / "pid").read_text())


SLEEPER = """
import os, sys, time
open(sys.argv[1], "w").write(f"{os.getpid()}\\n")
time.sleep(60)
"""
TETHERED = """
import subprocess, sys
from hpclbfl.launch.children import tethered
subprocess.run(tethered(["sh", "-c", 'echo $$ >"$0"; exec sleep 60', sys.argv[1]]))
"""
# What mpirun is for its ranks: it starts them as they are, untethered.
LAUNCHED = """
import subprocess, sys
from hpclbfl.launch.children import module_command
subprocess.run([*module_command("sleeper"), sys.argv[1]])
"""


@pytest.mark.parametrize("child", [TETHERED, LAUNCHED])
def test_what_is_killed_takes_its_children_with_it(child: str, tmp_path: Path) -> None:
    process, pid = parent_of(child, tmp_path)
    assert Path(f"/proc/{pid}").exists()
    process.kill()
    process.wait()
    assert is_gone(pid)


def test_a_tethered_program_is_as_it_would_be_alone() -> None:
    program = "import os, signal, sys; print(os.getpid(), sys.argv[1:], signal.getsignal(signal.SIGPIPE))"
    show = "grep SigIgn /proc/self/status"
    done = subprocess.run(tethered(["sh", "-c", show]), capture_output=True, text=True)
    assert done.stdout == subprocess.run(["sh", "-c", show], capture_output=True, text=True).stdout
    process = subprocess.Popen(
        tethered([sys.executable, "-c", program, "a b", "$x"]), stdout=subprocess.PIPE, text=True
    )
    out, _ = process.communicate(timeout=60)
    assert out.startswith(f"{process.pid} ['a b', '$x'] ") and process.returncode == 0
    assert subprocess.run(tethered(["sh", "-c", "exit 7"])).returncode == 7
    assert subprocess.run(tethered(["sh", "-c", "kill -9 $$"])).returncode == -signal.SIGKILL


def test_a_program_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(tethered([str(tmp_path / "none")]), capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"hpclbfl: error: {tmp_path / 'none'}: cannot be started: No such file or directory\n"


@pytest.mark.parametrize("grace_s", [0.0, 30.0])
def test_what_is_left_of_a_session_is_waited_for_and_killed(tmp_path: Path, grace_s: float) -> None:
    # In a process group of its own, as mpirun's ranks are.
    left = "sleep 60" if grace_s == 0 else "sleep 0.3"
    script = f"set -m; {left} & echo $! >{tmp_path}/pid; kill -9 $$"
    process = subprocess.Popen(["bash", "-c", script], start_new_session=True)
    process.wait()
    pid = int((tmp_path / "pid").read_text())
    begin = time.monotonic()
    end_session(process.pid, grace_s)
    assert is_gone(pid) and time.monotonic() - begin < 10


NAMES = "random, json, yaml, numpy, typing, re, pathlib, signal"


@pytest.fixture
def shadows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with modules named like those of Python and others."""
    folder = tmp_path / "shadows"
    folder.mkdir()
    for name in (
        "random",
        "json",
        "torch",
        "yaml",
        "numpy",
        "typing",
        "re",
        "pathlib",
        "signal",
        "horovod",
        "submitit",
    ):
        (folder / f"{name}.py").write_text(f"raise SystemExit('the wrong {name}')\n")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("more", ["", ":", ":/nowhere", "/nowhere::/elsewhere"])
def test_modules_of_the_working_folder_take_nobodys_place(shadows: Path, tmp_path: Path, more: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "probe.py").write_text(
        f"import sys, {NAMES}\nimport hpclbfl\nprint(sys.argv[1:], hpclbfl.__file__)\n"
    )
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path / 'mine'}:{more}" if more else str(tmp_path / "mine")}
    done = subprocess.run(module_command("probe", "a", "-m"), env=environ, capture_output=True, text=True, timeout=60)
    package = Path(sys.modules["hpclbfl"].__file__ or "").resolve()
    assert done.stdout == f"['a', '-m'] {package}\n", done.stderr


def test_the_working_folder_named_as_a_place_for_modules_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "probe.py").write_text("print('found')\n")
    monkeypatch.chdir(tmp_path)
    environ = {**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}::{tmp_path}"}
    done = subprocess.run(module_command("probe"), env=environ, capture_output=True, text=True, timeout=60)
    assert done.stdout == "found\n", done.stderr


@pytest.mark.parametrize("words", [["train", str(JOB), "--print-config"], ["report", "/nonexistent"]])
def test_python_m_works_beside_them(shadows: Path, words: list[str]) -> None:
    for name in ("typing", "re", "pathlib", "signal"):
        # Python's own search for the module to run may load these.
        (shadows / f"{name}.py").unlink()
    done = subprocess.run([sys.executable, "-m", "hpclbfl", *words], capture_output=True, text=True, timeout=60)
    assert "the wrong" not in done.stderr
    assert done.returncode == (0 if words[0] == "train" else 2)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["hpclbfl.planner.probe", "hpclbfl.launch.mpi_probe"])
def test_probes_work_beside_them(shadows: Path, module: str) -> None:
    done = subprocess.run(module_command(module), input="{}", capture_output=True, text=True, timeout=120)
    assert "the wrong" not in done.stderr


@pytest.mark.mpi
def test_ranks_and_sweeps_work_beside_them(shadows: Path, tmp_path: Path) -> None:
    short = ["stop.epochs=0.1", "--run-dir", str(tmp_path / "run")]
    command = module_command("hpclbfl", "launch", "-np", "2", str(JOB), *short)
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    text = "{name: s, ranks: 2, grid: {clients: [2]}, list: [{stop.epochs: 0.1}], resources: {cpus_per_rank: 1}, job: "
    (tmp_path / "sweep.yaml").write_text(f"{text}{JOB}}}")
    command = module_command("hpclbfl", "sweep", str(tmp_path / "sweep.yaml"), "--cluster", "local")
    done = subprocess.run([*command, "--dir", str(tmp_path / "s")], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "1 done, 0 failed" in done.stderr, done.stderr
