"""Reading the YAML files of this package, sweeps and cluster profiles, with errors that name file and key."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from hpclbfl.errors import ConfigError
from hpclbfl.sections import Section

Model = TypeVar("Model", bound=Section)


class _Loader(yaml.SafeLoader):
    """YAML without its traps: 1e-4 is a number, 1:30:00 is a time and no number, and no key may be given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(self.construct_object(key_node, deep=True))
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"^[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^[-+]?(\.[0-9]+([eE][-+]?[0-9]+)?|[0-9]+\.[0-9]*([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf|\.nan)$"
    ),
    list("-+.0123456789"),
)


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        path: the file.
        what: it is, for messages: "a sweep file, a mapping with ...".

    Raises:
        ConfigError: it cannot be read, is not YAML, or is no mapping; one line that names file and line.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not a text file'}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{where}: not valid YAML: {reason}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: not {what}")
    return values


def validated(model: type[Model], values: dict[str, Any], source: str) -> Model:
    """Build a section from a mapping.

    Raises:
        ConfigError: a key or value is wrong; one line that names `source`, the key and what would be right.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e, model, source) for e in error.errors()[:3])) from error


def _explain(error: Any, model: type[Section], source: str) -> str:
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        *parents, last = location
        for parent in parents:
            inner = model.model_fields[parent].annotation if parent in model.model_fields else None
            model = inner if isinstance(inner, type) and issubclass(inner, Section) else model
        valid = [field.alias or name for name, field in model.model_fields.items()]
        near = difflib.get_close_matches(last, valid, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return f"{source}: unknown key '{key}': {hint}valid here: {', '.join(valid)}"
    if error["type"] == "missing":
        return f"{source}: '{key}' is missing"
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    shown = f", not {given!r}" if isinstance(given, str | int | float | bool) else ""
    return f"{source}: {key or 'whole'}: {message[0].lower() + message[1:]}{shown}"
