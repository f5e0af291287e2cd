"""Ranks' notes, as they are written and as somebody may have damaged them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hpclbfl.training.watchdog import Watchdog, note_path, read_note, read_notes


def test_a_note_is_read_as_it_was_written_and_never_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    note_path(tmp_path, 1).with_suffix(".new").symlink_to("precious")
    with Watchdog(tmp_path, 1, 2, 60.0, lambda step, line: None) as watchdog:
        watchdog.step = 7
        watchdog._note()
    ((rank, note),) = read_notes(tmp_path).items()
    assert (rank, note.step, note.waits) == (1, 7, False) and 0 <= time.time() - note.time < 60
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"step": "x", "waits": false, "time": 0}',
        '{"step": 1e400, "waits": false, "time": 0}',
        '{"step": 1.5, "waits": 0, "time": 0}',
        '{"step": 1, "waits": false}',
        "[" * 100_000,
        '{"step": 1, "waits": false, "time": NaN}',
    ],
)
def test_a_damaged_note_is_no_note(tmp_path: Path, text: str) -> None:
    note_path(tmp_path, 0).write_text(text)
    assert read_note(tmp_path, 0) is None and read_notes(tmp_path) == {}
    (tmp_path / f"rank{'9' * 100}.note").write_text('{"step": 1, "waits": false, "time": 0}')
    assert read_notes(tmp_path) == {}
