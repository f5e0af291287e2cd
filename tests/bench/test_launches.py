"""What is told of a launch that failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpclbfl.bench.launches import _reason

NOTICE = "-----\nPrimary job terminated normally, but 1 process returned\na non-zero exit code.\n-----\n"


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("No module named pigeon\n" + NOTICE, "No module named pigeon"),
        # The ranks' output and mpirun's come by different ways.
        (NOTICE + "No module named pigeon\n", "No module named pigeon"),
        (NOTICE, "a non-zero exit code."),
        ("", "no message"),
    ],
)
def test_the_ranks_last_line_comes_first(tmp_path: Path, output: str, told: str) -> None:
    assert _reason(tmp_path, 1, output) == f"mpirun ended with exit code 1: {told}"


def test_the_rank_that_failed_first_is_named(tmp_path: Path) -> None:
    (tmp_path / "rank1.error").write_text("ValueError: no", encoding="utf-8")
    assert _reason(tmp_path, 1, NOTICE) == "rank 1: ValueError: no"
