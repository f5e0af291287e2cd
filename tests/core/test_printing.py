"""No module prints around `core.text`; found in the source, so that the next one does not either."""

import ast
import os
from pathlib import Path

import pytest

import hpclbfl

ROOT = Path(hpclbfl.__file__).parent
MODULES = sorted(
    path
    for folder, _, names in os.walk(ROOT, followlinks=True)
    for name in names
    if name.endswith(".py") and (path := Path(folder, name)) != ROOT / "core" / "text.py"
)

MACHINE_READABLE = {"launch/mpi_probe.py", "planner/probe.py"}
"""They print one line of JSON, which has no control characters, to the process that started them."""
WITHOUT_THE_PACKAGE = {"launch/entry/tether.py"}
"""Runs before anything can be imported; it names the program that it was told to start."""
FORBIDDEN = {"print", "secho", "echo", "print_exc", "print_exception", "print_tb", "from_markup", "escape"}
CONSOLES = {"Console"}
WITH_CONSOLE = {"Progress", "Live", "Bar"}
"""rich's: without a console of ours they make one of their own."""
DOCUMENTS = {
    "analysis/paper/report.py",
    "analysis/show/printing.py",
    "bench/command.py",
    "cli/doctor.py",
    "cli/train.py",
    "planner/command.py",
    "sharpness/command.py",
    "slurm/status.py",
}
"""They write JSON, YAML, Markdown and LaTeX, whose writers escape, to stdout."""
DIAGNOSTICS = "core/diagnostics.py"
"""The only module that knows of `logging`, and the only handler that writes to the terminal."""
USAGE = {"cli/app.py"}
"""Says how a command is used, in lines that no level of diagnostics hides."""


def name_of(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def says_a_diagnostic(call: ast.Call) -> bool:
    """Whether it is `say` to standard error, where a level cannot hide it."""
    streams = [*call.args[1:2], *(word.value for word in call.keywords if word.arg == "stream")]
    return (
        name_of(call) == "say"
        and isinstance(call.func, ast.Name)
        and not any(ast.unparse(stream) in ("sys.stdout", "self._log", "file") for stream in streams)
    )


def imports_logging(node: ast.AST) -> bool:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    return any(name.split(".")[0] == "logging" for name in names)


def is_stream(node: ast.AST) -> bool:
    return ast.unparse(node) in ("sys.stdout", "sys.stderr", "sys.__stdout__", "sys.__stderr__")


def offences(path: Path) -> list[str]:
    """Calls that write to a terminal by themselves: line and source."""
    place = path.relative_to(ROOT).as_posix()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    from_rich = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rich")
        for alias in node.names
    }
    found = []
    own_say = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)} | {
        argument.arg for node in ast.walk(tree) if isinstance(node, ast.arguments) for argument in node.args
    }
    for node in ast.walk(tree):
        if place != DIAGNOSTICS and imports_logging(node):
            found.append(f"{place}:{node.lineno}: {ast.unparse(node)[:80]}")
        if not isinstance(node, ast.Call):
            continue
        name, is_method = name_of(node), isinstance(node.func, ast.Attribute)
        bare = name == "print" and not is_method and place not in MACHINE_READABLE | WITHOUT_THE_PACKAGE
        other = name in FORBIDDEN - {"print", "escape"} or (name == "escape" and name in from_rich)
        console = name in CONSOLES and name in from_rich
        own_console = name in WITH_CONSOLE & from_rich and not any(word.arg == "console" for word in node.keywords)
        document = (
            name in ("write", "writelines") and is_method and is_stream(node.func.value) and place not in DOCUMENTS
        )
        silenced = place not in USAGE | {DIAGNOSTICS} and "say" not in own_say and says_a_diagnostic(node)
        if silenced or bare or other or console or own_console or document:
            found.append(f"{place}:{node.lineno}: {ast.unparse(node)[:80]}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_prints_around_core_text(path):
    assert offences(path) == []


@pytest.mark.parametrize(
    "source",
    [
        "print('x')",
        "from rich.console import Console\nConsole()",
        "import click\nclick.echo('x')",
        "import traceback\ntraceback.print_exc()",
        "import sys\nsys.stderr.write('x')",
        "from rich.progress import Progress\nProgress()",
        "from rich.markup import escape\nescape('x')",
        "from hpclbfl.core.text import say\nsay('x')",
        "import sys\nfrom hpclbfl.core.text import say\nsay('x', sys.stderr)",
        "import logging",
        "def f():\n    import logging.handlers",
        "from logging import getLogger",
    ],
)
def test_the_check_finds(tmp_path, monkeypatch, source):
    monkeypatch.setattr("tests.core.test_printing.ROOT", tmp_path)
    (tmp_path / "module.py").write_text(source)
    assert len(offences(tmp_path / "module.py")) == 1
