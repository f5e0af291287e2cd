from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

JOB = Path(__file__).parents[2] / "jobs" / "quickstart.yaml"


def hpclbfl(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "hpclbfl", *words], capture_output=True, text=True, timeout=120)


def test_help_and_reports_do_not_load_torch() -> None:
    program = (
        "import sys\n"
        "from hpclbfl.cli.app import main\n"
        "sys.argv = ['hpclbfl', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('loaded:', [m for m in ('torch', 'horovod') if m in sys.modules])\n"
    )
    for words in (["--help"], ["train", "--help"], ["report", "/nonexistent"], ["train", str(JOB), "--print-config"]):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60)
        assert done.stdout.splitlines()[-1] == "loaded: []", done.stderr


def test_print_config_is_whole_and_resolved() -> None:
    done = hpclbfl("train", str(JOB), "--print-config", "optimizer.lr=0.3")
    assert done.returncode == 0
    job = yaml.safe_load(done.stdout)
    assert job["optimizer"]["lr"] == 0.3
    assert job["clients"] == 10
    assert job["loss"] == {"name": "cross_entropy", "label_smoothing": 0.0}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "none.yaml"], "hpclbfl: error: none.yaml: cannot be read: No such file or directory"),
        (["launch", "-np", "2", str(JOB), "modle.name=x"], "unknown key 'modle': did you mean 'model'?"),
        (["train", str(JOB), "model.name=resnet9"], "model.name: 'resnet9' is not known: did you mean 'resnet8'?"),
        pytest.param(
            ["train", str(JOB), "data={name: cifar10, path: /nonexistent}"],
            "data.download: true",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_errors_are_one_line_with_exit_code_2(words: list[str], message: str) -> None:
    done = hpclbfl(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_usage_errors_have_exit_code_2() -> None:
    assert hpclbfl("trian").returncode == 2
    assert hpclbfl("train").returncode == 2


def test_version() -> None:
    assert hpclbfl("--version").stdout.startswith("hpclbfl 0.")
