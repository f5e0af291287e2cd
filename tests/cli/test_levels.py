"""--quiet and --verbose: before or after a command's name, for every command, and for what it starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hpclbfl.cli.app import COMMANDS, DATA_COMMANDS, app
from hpclbfl.core.diagnostics import LOG_LEVEL
from tests.conftest import write_toy_set

JOB = """
name: toy
data: {{name: packed, path: {path}}}
model: {{name: resnet8}}
clients: {clients}
stop: {{steps: 2}}
evaluate: {{every_steps: 2}}
batching: {{local_batch_size: 2}}
{more}
"""


@pytest.fixture
def job(tmp_path: Path, toy_set: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB.format(path=toy_set, clients=2, more=""))
    return path


def hpclbfl(*words: object, **environ: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "hpclbfl", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, env={**os.environ, **environ})


def test_every_command_takes_both() -> None:
    for command in (*COMMANDS, *DATA_COMMANDS):
        words = ["data", command.__name__] if command in DATA_COMMANDS else [command.__name__]
        shown = CliRunner().invoke(app, [*words, "--help"]).output
        assert re.search(r"-q, --quiet\s+Only warnings and errors on stderr", shown), command
        assert re.search(r"-v, --verbose\s+Also details on stderr", shown), command


@pytest.mark.parametrize(
    ("before", "after", "environ"),
    [
        (["--quiet"], [], {}),
        pytest.param([], ["-q"], {}, marks=pytest.mark.slow),
        pytest.param([], [], {LOG_LEVEL: "warning"}, marks=pytest.mark.slow),
        pytest.param([], ["--quiet"], {LOG_LEVEL: "debug"}, marks=pytest.mark.slow),
    ],
)
def test_a_quiet_run_leaves_its_log_whole(
    job: Path, tmp_path: Path, before: list[str], after: list[str], environ: dict[str, str]
) -> None:
    done = hpclbfl(*before, "train", job, "--run-dir", tmp_path / "run", *after, **environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    lines = (tmp_path / "run" / "attempts" / "000" / "log").read_text().splitlines()
    assert lines[0] == "2 clients on 1 rank (local, cpu), global batch 4, 96 training samples"
    assert lines[-1].startswith("top-1 ") and len(lines) == 2


@pytest.mark.slow
def test_warnings_stay(job: Path, tmp_path: Path, toy_set: Path) -> None:
    # Its clients train alone and are never averaged.
    job.write_text(JOB.format(path=toy_set, clients=2, more="sync: {kind: fedavg, local_steps: 50}"))
    done = hpclbfl("train", job, "--run-dir", tmp_path / "run", "--quiet")
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("toy FA, iid: warning: the clients trained alone and were never averaged: ")


@pytest.mark.slow
def test_the_error_is_the_last_line_at_every_level(tmp_path: Path) -> None:
    error = "hpclbfl: error: none.yaml: cannot be read: No such file or directory"
    for words in (["-q"], ["-v"], []):
        done = hpclbfl("train", "none.yaml", *words)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (2, error)
    done = hpclbfl("train", "none.yaml", **{LOG_LEVEL: "error"})
    assert (done.returncode, done.stderr) == (2, f"{error}\n")


@pytest.mark.slow
def test_a_verbose_run_tells_details_and_keeps_them_out_of_its_log(job: Path, tmp_path: Path) -> None:
    done = hpclbfl("train", job, "--run-dir", tmp_path / "run", "-v")
    assert done.returncode == 0
    text = done.stderr
    assert re.search(r"^hpclbfl: gradients are reduced in buckets of 0\.30 MB$", text, re.M)
    assert re.search(r"^hpclbfl: reading the data and building the net: \d+\.\d\d s$", text, re.M)
    assert re.search(r"^hpclbfl: .*/run/checkpoints: saved the checkpoint of step 2 in \d\.\d\d s$", text, re.M)
    assert len((tmp_path / "run" / "attempts" / "000" / "log").read_text().splitlines()) == 2
    again = hpclbfl("train", job, "stop.steps=3", "--run-dir", tmp_path / "run", "-v").stderr
    assert re.search(r"^hpclbfl: .*/run/checkpoints: read the checkpoint of step 2$", again, re.M)
    shown = hpclbfl("report", tmp_path, "-v").stderr
    assert re.search(r"^hpclbfl: .*: 1 runs, read \d+ of \d+ files, the others kept: \d\.\d\d s$", shown, re.M)


@pytest.mark.parametrize(
    "words", [["-q", "train", "-v", "x.yaml"], ["train", "-q", "-v", "x.yaml"], ["-q", "-v", "doctor"]]
)
def test_both_at_once_are_refused(words: list[str]) -> None:
    done = hpclbfl(*words)
    assert (done.returncode, done.stderr) == (2, "hpclbfl: error: --quiet and --verbose do not go together\n")


def test_a_level_of_the_environment_that_is_none() -> None:
    done = hpclbfl("report", ".", **{LOG_LEVEL: "loud"})
    line = f"hpclbfl: error: {LOG_LEVEL}: 'loud' is not a level; choose one of error, warning, info, debug\n"
    assert (done.returncode, done.stderr) == (2, line)


def test_without_a_command() -> None:
    done = hpclbfl("--quiet")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "hpclbfl: error: Missing command.")


SWEEP = "name: s\njob: job.yaml\nseeds: 1\nranks: 1\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "is_told", "has_details"), [([], True, False), (["-q"], False, False), (["-v"], True, True)]
)
def test_a_sweep_hands_its_level_on(
    job: Path, tmp_path: Path, words: list[str], is_told: bool, has_details: bool
) -> None:
    (tmp_path / "s.yaml").write_text(SWEEP)
    folder = tmp_path / "sweep"
    done = hpclbfl("sweep", tmp_path / "s.yaml", "--cluster", "local", "--dir", folder, *words)
    assert done.returncode == 0, done.stderr
    assert ("1 done, 0 failed, 0 left" in done.stderr) == is_told
    (log,) = folder.glob("logs/*")
    said = log.read_text()
    assert ("2 clients on 1 rank" in said) == is_told
    assert ("hpclbfl: gradients are reduced in buckets" in said) == has_details


@pytest.mark.slow
def test_a_failed_run_of_a_quiet_sweep_is_told(job: Path, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SWEEP)
    write_toy_set(tmp_path / "other.h5", num_train=8)
    done = hpclbfl("sweep", tmp_path / "s.yaml", "--cluster", "local", "--dir", tmp_path / "sweep", "-q")
    assert (done.returncode, done.stderr) == (0, "")
    (run,) = (tmp_path / "sweep" / "runs").iterdir()
    (run / "DONE.json").unlink()
    for checkpoint in run.glob("checkpoints/*/MANIFEST.json"):
        checkpoint.write_text("{}")
    done = hpclbfl("sweep", tmp_path / "s.yaml", "--cluster", "local", "--dir", tmp_path / "sweep", "-q")
    assert done.returncode == 3
    failed, summary = done.stderr.splitlines()
    assert re.match(r"hpclbfl: \S+ .*: failed: ", failed)
    assert summary.startswith("hpclbfl: 0 done, 1 failed, 0 left; ")
