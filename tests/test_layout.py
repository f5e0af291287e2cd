"""The layout of the package: imports run downwards, between folders and between files, without circles."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import hpclbfl

ROOT = Path(hpclbfl.__file__).parent
FOLDERS = (
    *("core", "config", "models", "data", "losses", "gradients", "optim", "comm", "batching", "algorithms", "runs"),
    *("training", "launch", "planner", "sharpness", "bench", "slurm", "analysis", "api", "cli"),
)
"""The lowest first."""
NAME = "hpclbfl"


def find_modules(root: Path) -> dict[str, Path]:
    """Files by the name that they are imported as; `slurm` and `analysis` are links."""
    found = {}
    for folder, _, names in os.walk(root, followlinks=True):
        for name in names:
            if name.endswith(".py"):
                parts = Path(folder, name).relative_to(root).with_suffix("").parts
                found[".".join((NAME, *parts)).removesuffix(".__init__")] = Path(folder, name)
    return found


def imports_of(module: str, path: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    """Modules of the package that a file imports, at its head or within a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules and alias.name != NAME)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found = inner if inner in modules else node.module
                if found in modules and found != NAME and found != module:
                    yield found


def folder_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


MODULES = find_modules(ROOT)
GRAPH = {module: set(imports_of(module, path, MODULES)) for module, path in MODULES.items()}


def test_every_module_lies_in_a_folder() -> None:
    loose = [path.name for path in ROOT.iterdir() if path.suffix == ".py"]
    assert sorted(loose) == ["__init__.py", "__main__.py"]
    assert {folder_of(module) for module in MODULES} == {"", "__main__", *FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_run_downwards(folder: str) -> None:
    upwards = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        if folder_of(module) == folder
        for other in others
        if FOLDERS.index(folder_of(other)) > FOLDERS.index(folder)
    ]
    assert not upwards


def test_the_analysis_reads_then_measures_then_shows() -> None:
    order = ("read", "measure", "show", "paper")
    stage = {module: order.index(module.split(".")[2]) for module in MODULES if module.startswith("hpclbfl.analysis.")}
    upwards = [
        f"{module} imports {other}"
        for module in stage
        for other in GRAPH[module]
        if stage.get(other, 0) > stage[module]
    ]
    assert not upwards


def test_no_files_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_only_command_line_and_scripts_know_of_slurm_and_the_analysis() -> None:
    knowing = {
        folder_of(module)
        for module, others in GRAPH.items()
        for other in others
        if folder_of(other) in ("slurm", "analysis") and folder_of(module) != folder_of(other)
    }
    assert knowing <= {"api", "cli"}


def test_the_walk_finds_an_upward_import(tmp_path: Path) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "cli").mkdir()
    (tmp_path / "core" / "a.py").write_text("def f():\n    from hpclbfl.cli import b\n")
    (tmp_path / "cli" / "b.py").write_text("import hpclbfl.core.a\n")
    modules = find_modules(tmp_path)
    graph = {module: set(imports_of(module, path, modules)) for module, path in modules.items()}
    assert graph == {"hpclbfl.core.a": {"hpclbfl.cli.b"}, "hpclbfl.cli.b": {"hpclbfl.core.a"}}
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()
