from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hpclbfl.bench import input, log
from hpclbfl.bench.turns import Turns
from hpclbfl.cli.app import app
from hpclbfl.core.errors import ConfigError, EnvironmentFault


def raw_counts(found: dict[str, Any]) -> dict[str, int]:
    return {series["variant"]: len(series["raw"]) for series in found["series"]}


def test_log(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    words = ["bench", "log", "--rounds", "2", "--variants", "rows,blocks", "--json", "--out", str(path)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    assert found == json.loads(path.read_text())
    assert str(path) in done.stderr
    assert raw_counts(found) == {"blocks": 2, "rows": 2}
    assert [(c["variant"], c["against"]) for c in found["comparisons"]] == [("blocks", "rows")]
    assert all(value > 0 for series in found["series"] for values in series["raw"] for value in values)


@pytest.mark.slow
def test_compression(tmp_path: Path) -> None:
    """The more values are kept, the less is lost."""
    path = tmp_path / "found.json"
    words = ["bench", "compression", "--rounds", "2", "--steps", "4", "--batch", "16", "--variants", "32,64"]
    done = CliRunner().invoke(app, [*words, "--json", "--out", str(path)])
    assert done.exit_code == 0
    found = json.loads(path.read_text())
    lost = {(s["group"], s["variant"]): s["median"] for s in found["series"]}
    for step in ("step 0", "step 1", "step 4"):
        for size in ("32", "64"):
            some = [lost[f"topk {share} %, {step}", size] for share in ("10", "1", "0.1")]
            assert 0 < some[0] < some[1] < some[2] < 100
            assert 0 < lost[f"signsgd, {step}", size] < 100
    assert len(found["comparisons"]) == 15
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_log_of_columns() -> None:
    findings = log.measure(log.Settings(rounds=1, rows=100, variants=("columns",)), Turns("log"))
    assert raw_counts(findings.plain()) == {"columns": 1}


def test_input() -> None:
    findings = input.measure(input.Settings(rounds=2, batch=8, images=40), Turns("input"))
    assert raw_counts(findings.plain()) == {"loader": 2, "pil": 2}
    assert [(c.variant, c.against) for c in findings.comparisons] == [("loader", "pil")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["apples"], "bench apples: unknown benchmark; there are comm, step, federated, scaler, input, log"),
        (["input", "--model", "vgg11"], "--model does not go with it; it takes --rounds, --batch, --variants"),
        (["comm", "--variants", "mpi,pigeon"], "--variants: unknown 'pigeon'; there are mpi, horovod"),
        (["comm", "--mb", "0"], "--mb 0: a size is above 0"),
        (["federated", "--samples", "100"], "--samples 100 are no whole batches of 32"),
        (["compression", "--variants", "48"], "--variants: unknown '48'; there are 32, 64, 128"),
        (["step", "--model", "resnet9"], "--model resnet9: unknown net; known: alexnet, "),
    ],
)
def test_usage_errors(tmp_path: Path, words: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["bench", *words, "--out", str(tmp_path / "found.json")])
    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_refused_before_measuring(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "found.json", tmp_path):
        done = CliRunner().invoke(app, ["bench", "comm", "--rounds", "1000000", "--out", str(out)])
        assert isinstance(done.exception, EnvironmentFault)
        assert str(done.exception).startswith(f"{out}: cannot be written: ")
