"""Those who only look at runs do not run what lies in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.own_parts.conftest import Workplace

MARK = """

from pathlib import Path
Path({!r}).write_text("imported")
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workplace, Path]:
    """A run whose net leaves a mark when it is imported, and the mark."""
    folder = tmp_path_factory.mktemp("trained")
    workplace, mark = Workplace(folder / "place"), folder / "mark"
    text = (workplace / "nets.py").read_text()
    (workplace / "nets.py").write_text(text + MARK.format(str(mark)))
    workplace.run("train", "job.yaml", "stop={steps: 4}", "evaluate={every_steps: 4}", "--run-dir", "runs/own")
    assert mark.exists()
    return workplace, mark


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("report", "runs"),
        ("report", "runs", "--json"),
        ("report", "runs", "-o", "page.html"),
        ("watch", "runs", "--once"),
        ("export", "runs"),
    ],
    ids=" ".join,
)
def test_looking_at_a_run_does_not_import_its_parts(trained: tuple[Workplace, Path], words: tuple[str, ...]) -> None:
    workplace, mark = trained
    mark.unlink(missing_ok=True)
    done = workplace.call(*words)
    assert done.returncode == 0, done.stderr
    assert not mark.exists()


@pytest.mark.slow
def test_the_status_of_a_sweep_does_not_import_them(trained: tuple[Workplace, Path]) -> None:
    workplace, mark = trained
    sweep = "name: own\njob: job.yaml\ngrid: {seed: [0]}\n"
    (workplace / "sweep.yaml").write_text(sweep)
    (workplace / "job.yaml").write_text((workplace / "job.yaml").read_text().replace("epochs: 4", "steps: 2"))
    workplace.run("sweep", "sweep.yaml", "--cluster", "local", "--dir", "out")
    mark.unlink()
    workplace.run("status", "out")
    workplace.run("report", "out")
    assert not mark.exists()


@pytest.mark.slow
def test_the_report_names_them(trained: tuple[Workplace, Path]) -> None:
    workplace, _ = trained
    (copy,) = (workplace / "runs" / "own" / "parts").glob("*/nets.py")
    done = workplace.call("report", "runs", "-o", "page.html")
    told = f"nets.py:WideNet (sha256 {copy.parent.name})"
    assert "own parts: partitions.py:Geometric (sha256 " in done.stdout and told in done.stdout
    page = (workplace / "page.html").read_text()
    assert "<dt>own parts</dt>" in page and told in page
