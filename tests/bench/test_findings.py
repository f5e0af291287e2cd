from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpclbfl.bench import report
from hpclbfl.bench.findings import Findings
from hpclbfl.bench.turns import Turns
from hpclbfl.core.files import write_output


def made() -> Findings:
    findings = Findings("Apples", {"fast": "the fast way", "slow": "the slow way"})
    for slow, fast in ((30.0, 10.0), (20.0, 10.0), (50.0, 20.0)):
        findings.add("1 MB", "slow", "ms", [slow - 1, slow, slow + 40])
        findings.add("1 MB", "fast", "ms", [fast])
        findings.add("images", "fast", "images/s", [fast])
        findings.add("images", "slow", "images/s", [slow])
    findings.sort(["fast", "slow"])
    return findings


def test_ratios_tell_the_better_side_whatever_the_unit() -> None:
    findings = made()
    findings.compare("1 MB", "fast", "slow")
    findings.compare("images", "fast", "slow")
    findings.compare("1 MB", "fast", "left out")
    by_group = {c.group: c for c in findings.comparisons}
    assert len(findings.comparisons) == 2
    assert by_group["1 MB"].ratio.value == 2.5
    assert by_group["1 MB"].text == "2.5x faster (2 to 3)"
    assert by_group["1 MB"].title == "the fast way against the slow way"
    assert by_group["images"].text == "2.5x slower (2 to 3)"


def test_everything_is_kept_by_round() -> None:
    findings = made()
    assert [(s.group, s.variant) for s in findings.series] == [
        *(("1 MB", "fast"), ("1 MB", "slow"), ("images", "fast"), ("images", "slow")),
    ]
    series = findings.plain()["series"][1]
    assert series["raw"] == [[29.0, 30.0, 70.0], [19.0, 20.0, 60.0], [49.0, 50.0, 90.0]]
    assert series["by_round"] == [30.0, 20.0, 50.0]
    assert (series["lower_quartile"], series["median"], series["upper_quartile"]) == (25.0, 30.0, 40.0)


def test_variants_take_turns_and_none_is_always_first() -> None:
    with Turns("toy") as turns:
        assert list(turns(("a", "b", "c"), 2)) == [(0, "a"), (0, "b"), (0, "c"), (1, "b"), (1, "c"), (1, "a")]


def test_document_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    findings = made()
    findings.compare("1 MB", "fast", "slow")
    findings.extra["libraries"] = {"fast": "none"}
    path = tmp_path / "deep" / "er" / "found.json"
    write_output(path, report.as_text(report.document("apples", {"rounds": 3}, findings)).encode())
    found = json.loads(path.read_text())
    assert found["benchmark"] == "apples" and found["settings"] == {"rounds": 3}
    assert found["libraries"] == {"fast": "none"}
    assert found["machine"]["versions"]["torch"] and found["machine"]["cpu"]["usable"] >= 1 and found["machine"]["time"]
    assert found["comparisons"][0]["ratio"] == {"value": 2.5, "low": 2.0, "high": 3.0, "num_rounds": 3}
    assert [p.name for p in path.parent.iterdir()] == ["found.json"]
    report.print_tables(findings)
    shown = capsys.readouterr().out
    assert "25 to 40" in shown and "the fast way against the slow way" in shown and "2.5x faster (2 to 3)" in shown
