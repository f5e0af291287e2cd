"""What clients send, by hand: beside what they would send without compression."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from hpclbfl.analysis.measure.plot_data import figure_runs
from hpclbfl.analysis.measure.report import make_report
from hpclbfl.analysis.measure.traffic import traffic
from hpclbfl.analysis.read.load import load
from hpclbfl.analysis.show.page import page
from hpclbfl.analysis.show.traffic_table import traffic_table
from tests.analysis.conftest import print_folder, two_client_run

METRICS = {
    "sent_mb": [0.5] * 10 + [0.1] * 10,
    "compression_error": [0.2] * 10 + [math.nan] + [0.8] * 9,
    "compression_level": [0.1] * 10 + [0.02] * 10,
}


def test_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_client_run(tmp_path / "a", sync="{kind: bsp}", metrics=METRICS, message_bytes=2_000_000)
    two_client_run(tmp_path / "b", sync="{kind: selsync}", message_bytes=2_000_000)
    frames = load(tmp_path)
    found = traffic(frames, figure_runs(frames)).sort("sent_mb").to_dicts()
    # 20 steps: a ring of two ranks sends 2 MB of 2 MB each time.
    assert [(row["sent_mb"], row["step_mb"], row["share"]) for row in found] == [
        (pytest.approx(6.0), pytest.approx(0.3), pytest.approx(0.15)),
        (pytest.approx(40.0), pytest.approx(2.0), pytest.approx(1.0)),
    ]
    compressed = found[0]
    assert compressed["error"] == pytest.approx((10 * 0.2 + 9 * 0.8) / 19)
    assert (compressed["level_low"], compressed["level_high"], found[1]["level_low"]) == (0.02, 0.1, None)
    # The log says nothing of the transfer's part.
    assert compressed["step_s"] == 1.0
    report = make_report(frames)
    table = traffic_table(frames, report.arms[0])
    assert [row[-1] for row in table.rows] == ["0.02 to 0.1", "-"] and len(table.head) == 8
    assert "0.02 to 0.1" in page(report)
    print_folder(tmp_path)
    assert "What clients send" in capsys.readouterr().out


def test_nothing_is_shown_where_nothing_is_compressed(tmp_path: Path) -> None:
    two_client_run(tmp_path / "a")
    report = make_report(load(tmp_path))
    assert not traffic_table(report.frames, report.arms[0]).rows
    assert "what clients send" not in page(report).lower()


def test_older_runs_do_not_tell_the_size_of_a_reduction(tmp_path: Path) -> None:
    two_client_run(tmp_path / "a", metrics={"sent_mb": [0.5] * 20})
    frames = load(tmp_path)
    (row,) = traffic(frames, figure_runs(frames)).to_dicts()
    assert (row["sent_mb"], row["share"], row["error"]) == (pytest.approx(10.0), None, None)
