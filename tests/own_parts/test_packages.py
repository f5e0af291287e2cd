"""A part of an installed package: not copied, but told apart by version and source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.own_parts.conftest import EXAMPLES, Workplace

WORDS = ("train", "job.yaml", "stop={steps: 4}", "evaluate={every_steps: 4}", "--run-dir", "run")


class Package:
    """An installed package of somebody's, `lab.nets`."""

    def __init__(self, site: Path) -> None:
        self.site = site
        (site / "lab").mkdir(parents=True)
        (site / "lab" / "__init__.py").write_text("")
        self.nets = site / "lab" / "nets.py"
        # It is a package: a module may use another.
        (site / "lab" / "parts.py").write_text((EXAMPLES / "nets.py").read_text())
        self.nets.write_text("from .parts import WideNet\n\nclass Net(WideNet):\n    pass\n")
        (site / "lab-1.0.dist-info").mkdir()
        (site / "lab-1.0.dist-info" / "top_level.txt").write_text("lab\n")
        self.set_version("1.0")

    def set_version(self, version: str) -> None:
        text = f"Metadata-Version: 2.1\nName: lab\nVersion: {version}\n"
        (self.site / "lab-1.0.dist-info" / "METADATA").write_text(text)


@pytest.fixture
def package(tmp_path: Path, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Package:
    import os

    job = (workplace / "job.yaml").read_text()
    (workplace / "job.yaml").write_text(job.replace("nets.py:WideNet", "lab.nets:Net"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return Package(tmp_path / "site")


@pytest.mark.slow
def test_it_trains_and_goes_on_and_is_not_copied(workplace: Workplace, package: Package) -> None:
    workplace.run(*WORDS)
    assert not list((workplace / "run" / "parts").glob("*/nets.py"))
    (part,) = (
        part
        for part in json.loads((workplace / "run" / "attempts" / "000" / "provenance.json").read_text())["own_parts"]
        if part["key"] == "model.name"
    )
    assert (part["name"], part["version"], part["copy"]) == ("lab.nets:Net", "1.0", None)
    assert "already done" in workplace.run(*WORDS)
    assert "Hessian" in workplace.call("sharpness", "--help").stdout
    workplace.run("sharpness", "run", "--samples", "8", "--iterations", "1")


@pytest.mark.slow
@pytest.mark.parametrize("change", ["version", "source"])
def test_another_version_or_source_refuses_the_resume(workplace: Workplace, package: Package, change: str) -> None:
    workplace.run(*WORDS)
    if change == "version":
        package.set_version("1.1")
    else:
        package.nets.write_text(package.nets.read_text() + "# edited\n")
    done = workplace.call(*WORDS, "stop.samples=100000")
    assert done.returncode == 2
    assert "run: holds another experiment: model.name was lab.nets@" in done.stderr
    version = "1.1" if change == "version" else "1.0"
    # The job of the run folder, as that of a sweep, says which one it was made with.
    for words in (("sharpness", "run"), ("train", "run/config.yaml", "--run-dir", "run")):
        done = workplace.call(*words)
        assert done.returncode == 2
        assert done.stderr.startswith(
            f"hpclbfl: error: run/config.yaml: model.name: lab.nets, version {version}, is not the one that this job "
            "was made with (its hash was "
        )
        assert len(done.stderr.splitlines()) == 1


def test_without_it_the_line_says_so(workplace: Workplace, package: Package) -> None:
    package.nets.write_text("import no_such_module\n")
    done = workplace.call(*WORDS)
    assert (done.returncode, done.stderr) == (
        2,
        "hpclbfl: error: job.yaml: model.name: lab.nets cannot be imported: ModuleNotFoundError: No module named "
        "'no_such_module'; give an installed module, as package.module:Class, or a file, as nets.py:Class\n",
    )
