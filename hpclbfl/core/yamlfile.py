"""Reading this package's YAML files: one mapping each, with errors that name file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from hpclbfl.errors import ConfigError


class Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, where YAML would let the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build the mapping of a node."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(self.construct_object(key_node, deep=True))
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_mapping(path: Path, wanted: str, loader: type[yaml.SafeLoader] = Loader) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        path: the file.
        wanted: what the file should be, the message for one that is no mapping.
        loader: turns its text into values.

    Raises:
        ConfigError: it cannot be read, is not YAML, or is no mapping; one line that names file and line.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not a text file'}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{where}: not valid YAML: {reason}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: {wanted}")
    return values


def parse_mapping(text: str, source: str, wanted: str) -> dict[str, Any]:
    """Return the mapping in a YAML text; `source` begins the line of an error. See `read_mapping`."""
    try:
        values = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError, OverflowError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        reason = getattr(error, "problem", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{where}: not valid YAML: {reason}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{source}: {wanted}")
    return values


def set_value(values: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Set `key.path` in nested mappings, in place; sections that are absent or null come to be.

    Raises:
        ConfigError: the key goes through a value that has no keys; `source` begins the line.
    """
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"{source}: '{parent}' is a value, it has no keys")
        node = child
    node[last] = value
