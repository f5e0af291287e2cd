"""The keys of a section of a YAML file as rows of a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from hpclbfl.core.registry import fields_of
from tools.docs.docstrings import docstring, key_docstring
from tools.docs.markdown import table
from tools.docs.values import defaults_of, sections_of, values_of

Config = type[BaseModel]
EMPTY: Mapping[str, Any] = {}


class Key(NamedTuple):
    """One row."""

    path: str
    """In the file: `data.name`."""
    name: str
    values: str
    default: str
    meaning: str


def keys_of(config: Config, prefix: str = "", given: Mapping[str, Any] = EMPTY) -> list[Key]:
    """Keys of a section, in its order.

    Args:
        config: the section.
        prefix: of their paths, the sections around it.
        given: what a file has to state.
    """
    defaults = defaults_of(config, dict(given))
    names = {id(field): name for name, field in config.model_fields.items()}
    found = []
    for key, field in fields_of(config).items():
        if field.exclude:
            # Set by the key around it.
            continue
        inner = " ".join(docstring(section) for section in sections_of(field))
        meaning = key_docstring(config, names[id(field)]) or inner
        found.append(Key(f"{prefix}{key}", key, values_of(field), defaults[names[id(field)]], meaning))
    return found


def keys_table(rows: Iterable[Key]) -> str:
    """Them as a table."""
    cells = [(f"`{row.name}`", row.values, row.default, row.meaning) for row in rows]
    return table(("key", "values", "default", "meaning"), cells)
