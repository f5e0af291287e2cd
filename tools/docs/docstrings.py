"""Docstrings of a config's keys, which Python itself does not keep: read from the source."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

SEE_MODULE = "See the module"
"""Begins the docstring of a class or function whose text stands at the top of its file."""


def docstring(thing: Any) -> str:
    """The docstring of a class or function, or of its module where it points there; empty if it has none of its own."""
    text = inspect.cleandoc(thing.__doc__ or "")
    if text.startswith(SEE_MODULE):
        return inspect.cleandoc(sys.modules[thing.__module__].__doc__ or "")
    return text


def key_docstring(config: type[Any], name: str) -> str:
    """What stands under a field: in its class, else in the nearest class above, else under the alias of its type."""
    for owner in config.__mro__:
        found = _docstrings_of(owner).get(name)
        if found:
            return found
    return ""


@functools.cache
def _docstrings_of(owner: type[Any]) -> dict[str, str]:
    """Of the fields that a class defines itself."""
    if owner is BaseModel or not issubclass(owner, BaseModel):
        return {}
    tree = _parsed(Path(inspect.getsourcefile(owner) or ""))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner.__qualname__)
    aliases = dict(_assigned(tree.body))
    found = {}
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            alias = aliases.get(node.annotation.id, "") if isinstance(node.annotation, ast.Name) else ""
            found[node.target.id] = alias
    return found | dict(_assigned(body))


def _assigned(body: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Names that are assigned to, each with the string that follows."""
    for node, following in itertools.pairwise(body):
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if len(targets) != 1 or not isinstance(targets[0], ast.Name) or not isinstance(following, ast.Expr):
            continue
        if isinstance(following.value, ast.Constant) and isinstance(following.value.value, str):
            yield targets[0].id, inspect.cleandoc(following.value.value)


@functools.cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
