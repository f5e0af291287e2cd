"""Sizes as people write and read them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hpclbfl.core.errors import ConfigError
from hpclbfl.core.memory import parse_size, shown_size

JOB = Path(__file__).parents[2] / "jobs" / "quickstart.yaml"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (999.6, "1 kB"),
        (1_500, "1.5 kB"),
        (1_000_000, "1 MB"),
        (123_456_789, "123 MB"),
        (999_600_000, "1 GB"),
        (1_250_000_000, "1.25 GB"),
        (22.5e9, "22.5 GB"),
        (3e15, "3000 TB"),
    ],
)
def test_sizes_are_shown_in_the_unit_that_fits(size: float, text: str) -> None:
    assert shown_size(size) == text


def test_sizes_are_read() -> None:
    assert (parse_size("2GB"), parse_size("512 MiB"), parse_size("1.5e9")) == (2 * 10**9, 2**29, 1_500_000_000)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "1e999", "9" * 400, "1e30TB", "1..2", "\x1b[2J", "two"])
def test_invalid_sizes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^memory limit '.{1,200}': write a size such as 2GB or 512MiB$") as error:
        parse_size(text)
    assert str(error.value).isprintable() and len(str(error.value)) < 300


def plan(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpclbfl", "plan", str(JOB), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)


@pytest.mark.slow
def test_a_limit_that_is_too_small_is_named_as_it_was_given(tmp_path: Path) -> None:
    done = plan(tmp_path, "--memory-limit", "1MB")
    assert done.returncode == 1
    error = "hpclbfl: error: memory: a small batch runs out of 1 MB on rank 0: give it more"
    assert done.stderr.splitlines()[-1] == error


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--out", "{}/a"], ["--plot", "{}/a.svg"]])
def test_a_place_that_cannot_be_written_is_refused_before_the_probes(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "file").touch()
    done = plan(tmp_path, *(word.format(tmp_path / "file") for word in words))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "cannot be written" in done.stderr
