"""What strangers wrote, on the terminal: every command escapes it, whatever the streams' encoding."""

import io
import json
import os
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from hpclbfl.cli.app import main
from hpclbfl.cli.doctor import Check
from hpclbfl.core.progress import TERMINAL_COLUMNS, Progress
from hpclbfl.core.text import make_streams_safe
from hpclbfl.data.packed import write_packed
from hpclbfl.runs.folder import RunFolder
from hpclbfl.training.failure import say_failure
from tests.analysis.conftest import two_client_run
from tests.conftest import _png, write_toy_set

pytestmark = pytest.mark.usefixtures("terminal")

HOSTILE = "r\x1b[2J\x1b]0;t\x07[/red] :smile: ü\u202e\nhpclbfl: error: forged\r"
SHOWN = r"r\x1b[2J\x1b]0;t\x07[/red] :smile: ü\u202e\nhpclbfl: error: forged\r"
ASCII = SHOWN.replace("ü", r"\xfc")
NAME = HOSTILE.replace("\r", "").replace("]0;t\x07", "")
"""As a folder's name."""


def hpclbfl(*words: str, cwd: Path, encoding: str = "ascii") -> subprocess.CompletedProcess[bytes]:
    environ = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "300"}
    argv = [sys.executable, "-m", "hpclbfl", *words]
    return subprocess.run(argv, capture_output=True, timeout=120, cwd=cwd, env=environ)


@pytest.fixture
def here(monkeypatch):
    """The same in this process, which is faster."""

    def run(*words: str, cwd: Path, encoding: str = "ascii") -> subprocess.CompletedProcess[bytes]:
        streams = [io.BytesIO(), io.BytesIO()]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["hpclbfl", *words])
            patch.setattr(sys, "excepthook", sys.excepthook)
            patch.setattr(threading, "excepthook", threading.excepthook)
            patch.setattr(warnings, "showwarning", warnings.showwarning)
            patch.chdir(cwd)
            for name, stream in zip(("stdout", "stderr"), streams, strict=True):
                patch.setattr(sys, name, io.TextIOWrapper(stream, encoding=encoding, write_through=True))
            with pytest.raises(SystemExit) as ended:
                main()
            found = [stream.getvalue() for stream in streams]
        return subprocess.CompletedProcess(words, ended.value.code or 0, *found)

    return run


def assert_plain(done: subprocess.CompletedProcess[bytes], encoding: str = "ascii") -> str:
    """Both streams, which hold text of that encoding alone, without control characters."""
    text = (done.stdout + done.stderr).decode(encoding)
    assert re.findall(r"[^\n\t -~\xa0-\uffff]|[\x80-\x9f\u202a-\u202e]", text) == []
    assert "Traceback" not in text
    assert not any(line.startswith("hpclbfl: error: forged") for line in text.splitlines())
    return text


@pytest.fixture
def runs(tmp_path):
    root = tmp_path / "runs"
    two_client_run(root / NAME, state="failed")
    RunFolder(root / NAME).write_status("failed", error=HOSTILE + "x" * 100_000)
    two_client_run(root / "b", seed=1)
    (root / "b" / "config.yaml").write_text(
        json.dumps({"name": HOSTILE, "seed": 1, "clients": 2, "sync": {"kind": HOSTILE}})
    )
    two_client_run(root / "c", seed=2)
    return root


@pytest.mark.parametrize(
    "words",
    [
        ["report", "."],
        ["report", ".", "--format", "markdown"],
        ["report", ".", "--format", "latex"],
        ["report", ".", "--json"],
        ["watch", ".", "--once"],
        ["export", ".", "--format", "csv"],
        ["report", ".", "-o", f"{NAME}.html"],
    ],
    ids=lambda words: "-".join(words[::2] if len(words) == 4 else words)[:20],
)
def test_folders_of_runs(runs, here, words):
    done = here(*words, cwd=runs)
    text = assert_plain(done)
    assert done.returncode == 0
    assert_plain(here(*words, cwd=runs, encoding="utf-8"), "utf-8")
    if words[1:] == ["."] or "--once" in words:
        assert r"\x1b[2J" in text
        assert r"forged\r" in text
        assert len(text) < 20_000


@pytest.mark.parametrize("words", [["report", "."], ["watch", ".", "--once"]])
def test_a_process_of_its_own(runs, words):
    done = hpclbfl(*words, cwd=runs)
    text = assert_plain(done)
    assert (done.returncode, r"\x1b[2J" in text) == (0, True)


def test_status_of_a_sweep(runs, here):
    sweep = runs.parent / "sweep"
    ids = ["first-0123456789", "plain-0123456789"]
    entries = [{"id": id_, "digest": "0123456789", "ranks": 1, "overrides": {"name": HOSTILE}} for id_ in ids]
    sweep.mkdir()
    (sweep / "sweep.json").write_text(json.dumps({"runs": entries}))
    done = here("status", ".", cwd=sweep)
    text = assert_plain(done)
    assert done.returncode == 0
    assert "2 waiting" in text
    assert r"\e[2J" in text
    # An id is the name of a folder.
    (sweep / "sweep.json").write_text(json.dumps({"runs": [{**entries[0], "id": f"{HOSTILE}-0123456789"}]}))
    done = here("status", ".", cwd=sweep)
    assert_plain(done)
    assert (done.returncode, b"runs.0.id" in done.stderr) == (1, True)


def test_a_packed_files_classes(tmp_path, here):
    import numpy as np

    images = [(_png(np.full((8, 8, 3), 10 * label, np.uint8)), label) for label in (0, 1)]
    write_packed(tmp_path / "ü.h5", [HOSTILE, "[/b]"], {"train": images, "test": images})
    done = hpclbfl("data", "info", "ü.h5", cwd=tmp_path)
    text = assert_plain(done)
    assert done.returncode == 0
    assert r"\xfc.h5" in text
    (tmp_path / "job.yaml").write_text("data: {name: packed, path: ü.h5}\nmodel: {name: resnet8}\nclients: 1\n")
    done = here("data", "info", "job.yaml", cwd=tmp_path)
    assert_plain(done)
    assert (done.returncode, b"training samples over 1 clients" in done.stdout) == (0, True)


def test_the_machine(tmp_path, here, monkeypatch):
    found = [Check("Python", "ok", HOSTILE), Check("MPI", "missing", HOSTILE, HOSTILE)]
    monkeypatch.setattr("hpclbfl.cli.doctor.checks", lambda: found)
    done = here("doctor", cwd=tmp_path)
    assert (done.returncode, assert_plain(done).count(r"\x1b[2J")) == (1, 3)
    here("doctor", "--json", cwd=tmp_path)
    for words in (["--help"], ["report", "--help"]):
        assert_plain(here(*words, cwd=tmp_path))


@pytest.mark.slow
def test_training_into_a_folder_with_a_markup_name(tmp_path):
    write_toy_set(tmp_path / "ü.h5")
    (tmp_path / "job.yaml").write_text(
        "data: {name: packed, path: ü.h5}\nmodel: {name: resnet8}\nclients: 2\nstop: {steps: 2}\n"
        "evaluate: {every_steps: 1}\nbatching: {local_batch_size: 2}\n",
        encoding="utf-8",
    )
    done = hpclbfl("train", "job.yaml", "--run-dir", NAME, cwd=tmp_path)
    text = assert_plain(done)
    assert done.returncode == 0, text
    assert (tmp_path / NAME / "DONE.json").exists()
    assert "[/red]" in text


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["report", HOSTILE], 2, f"hpclbfl: error: {ASCII}: no such folder; give a run folder, or one that holds some"),
        (["report", ".", HOSTILE], 2, None),
        ([HOSTILE], 2, None),
        (["report", ".", "--format", HOSTILE], 2, None),
        (["report", ".", "--target", HOSTILE], 2, None),
        (["train", HOSTILE], 2, None),
        (["train", HOSTILE, "--debug"], 2, None),
        (["train", "job.yaml", HOSTILE + "=1"], 2, None),
        (["report", "x" * 100_000], 2, None),
    ],
)
def test_words_of_the_command_line(tmp_path, here, words, code, line):
    done = here(*words, cwd=tmp_path)
    text = (done.stdout + done.stderr).decode("ascii")
    assert re.findall(r"[^\n -~]", text) == []
    assert done.returncode == code
    last = text.splitlines()[-1]
    assert last.startswith("hpclbfl: error: ") and not last.startswith("hpclbfl: error: forged")
    assert len(last) < 5000
    assert line in (None, last)


def test_a_progress_bar_and_its_log(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(TERMINAL_COLUMNS, "200")
    log = (tmp_path / "log").open("w", encoding="ascii")
    with log, Progress(HOSTILE, 4, True, log) as bar:
        bar.step(1, 1.0, 1.0)
        bar.say(HOSTILE)
    # The bar's own codes apart, which move its cursor and colour it.
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert re.findall(r"[\x00-\x09\x0b\x0c\x0e-\x1f\u202e]", shown) == []
    assert SHOWN in shown
    assert (tmp_path / "log").read_text() == ASCII + "\n"


def test_a_failure_and_its_traceback(capsys):
    class Alone:
        rank, size = 0, 1

    code, line = say_failure(Alone(), ValueError(HOSTILE), True, "step 7: ")
    said = capsys.readouterr().err
    assert (code, line) == (1, f"step 7: ValueError: {HOSTILE}")
    assert said.splitlines()[-1] == f"hpclbfl: error: step 7: ValueError: {SHOWN}"
    assert re.findall(r"[^\n -~ü]", said) == []


def test_warnings_and_uncaught_errors(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        make_streams_safe()
        warnings.warn(HOSTILE, stacklevel=1)
    said = capsys.readouterr().err
    assert said.endswith(f"UserWarning: {SHOWN}\n")
    error = ValueError(HOSTILE)
    sys.excepthook(ValueError, error, None)
    assert re.findall(r"[^\n -~ü]", capsys.readouterr().err) == []


def test_an_interrupt_has_its_code(monkeypatch, tmp_path, here):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("hpclbfl.analysis.show.watch.watch", interrupted)
    assert here("watch", ".", cwd=tmp_path).returncode == 130
