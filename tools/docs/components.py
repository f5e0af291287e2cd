"""The kinds of components, each with its contract and the text of an example."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

from hpclbfl.config.components import NESTED, SECTIONS
from hpclbfl.core.registry import Registry
from tools.docs.markdown import text

ROOT = Path(__file__).parents[2]
OWN_PARTS = ROOT / "docs" / "examples" / "own_parts"
"""Complete examples of parts outside the package, with the jobs that name them."""
FROM_PYTHON = ROOT / "docs" / "examples" / "from_python.py"
NESTED_KEYS = {
    "transform": "gradients.chain",
    "detector": "change",
    "adapter": "compression.adapt",
    "teacher": "gradients.teacher",
}
"""Where components are named that stand within a section."""
KINDS = """## Kinds of components

Each kind comes with the contract of its folder and the shortest built-in component that has a config of its own."""


def components() -> str:
    """Examples of a user's own parts, then each kind, as Markdown."""
    files = sorted(path for path in OWN_PARTS.glob("*") if path.suffix in (".py", ".yaml"))
    parts = ["## Examples of your own parts"] if files else []
    for path in files:
        parts += [f"### `{path.name}`", listing(path)]
    parts.append(KINDS)
    kinds = [(f"section `{section}`", registry) for section, registry in SECTIONS.items()]
    kinds += [(f"key `{NESTED_KEYS[kind]}`", registry) for kind, registry in NESTED.items()]
    parts += [part for where, registry in kinds for part in _kind(where, registry)]
    return "\n\n".join(parts)


def python_example() -> str:
    """The example of the Python API, as Markdown."""
    return f"## An example\n\n{listing(FROM_PYTHON)}" if FROM_PYTHON.exists() else ""


def listing(path: Path) -> str:
    """A file of the checkout as a block of code, its path above it."""
    language = {".py": "python", ".yaml": "yaml"}[path.suffix]
    return f"```{language}\n# {path.relative_to(ROOT)}\n{path.read_text(encoding='utf-8').rstrip()}\n```"


def _kind(where: str, registry: Registry[Any]) -> list[str]:
    found = {name: component for name in registry.names() if (component := registry.find(name)) is not None}
    modules = {component.make.__module__ for component in found.values()}
    own = {component.make.__module__ for component in found.values()} & {
        component.config.__module__ for component in found.values()
    }
    shortest = min((_path(module) for module in own or modules), key=lambda path: (len(path.read_bytes()), path))
    package = importlib.import_module(next(iter(sorted(modules))).rpartition(".")[0])
    names = ", ".join(f"`{name}`" for name in found)
    return [
        f"### {registry.what[0].upper()}{registry.what[1:]}: {where}",
        text(inspect.cleandoc(package.__doc__ or "")),
        f"In the package, `{_path(package.__name__).parent.relative_to(ROOT)}/`: {names}.",
        listing(shortest),
    ]


def _path(module: str) -> Path:
    return Path(inspect.getsourcefile(importlib.import_module(module)) or "")
