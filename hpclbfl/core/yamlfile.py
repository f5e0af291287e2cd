"""YAML files: those that people write, and those that this package writes, with a checksum as their last line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hpclbfl.core.errors import ConfigError, DataError
from hpclbfl.core.files import read_bytes, write_text
from hpclbfl.core.text import printable, shown
from hpclbfl.core.yamltext import MAX_DEPTH, NotYaml, parse

MAX_BYTES = 1_000_000
"""Largest file, unless its reader sets another limit."""
SEAL = "# sha256 of the text above: "


def read_mapping(path: Path, wanted: str, limit: int = MAX_BYTES) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Args:
        path: the file.
        wanted: the message for a file that is not a mapping.
        limit: largest size, bytes.

    Raises:
        ConfigError: it cannot be read, is not YAML, does not match its checksum, or is not a mapping; one line that
            names file and line.
    """
    try:
        content = read_bytes(path, limit)
    except FileNotFoundError as error:
        raise ConfigError(f"{printable(path)}: cannot be read: No such file or directory") from error
    except DataError as error:
        raise ConfigError(printable(error)) from error
    return parse_mapping(content, str(path), wanted)


def parse_mapping(content: bytes, source: str, wanted: str) -> dict[str, Any]:
    """The mapping in the content of a YAML file; `source` begins the error message. See `read_mapping`."""
    source = printable(source)
    _check_seal(content, source)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{source}:{line}: cannot be read: not a text file (UTF-8)") from error
    try:
        value = parse(text)
    except NotYaml as refusal:
        raise ConfigError(f"{source}:{refusal.line}: not valid YAML: {refusal}") from refusal
    if not isinstance(value, dict):
        raise ConfigError(f"{source}: {wanted}")
    return value


def parse_value(text: str, source: str) -> Any:
    """The value of a YAML text, such as that of an override.

    Raises:
        ConfigError: it is not YAML; one line that begins with `source`.
    """
    try:
        return parse(text)
    except NotYaml as refusal:
        raise ConfigError(f"{source}: the value is not valid YAML: {refusal}") from refusal


def write_sealed(path: Path, text: str) -> None:
    """Write a YAML text atomically, with a checksum as its last line.

    Raises:
        EnvironmentFault: the file cannot be written; one line that names it.
    """
    text = text if text.endswith("\n") else f"{text}\n"
    write_text(path, f"{text}{SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n")


def set_value(values: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Set `key.path` in nested mappings, in place; sections that are absent or null are created.

    Raises:
        ConfigError: a part of the key is empty, or a parent is not a mapping; `source` begins the message.
    """
    *parents, last = _parts(key, source)
    node = values
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"{source}: {shown(parent)} is a value, it has no keys")
        node = child
    node[last] = value


def refuse_undone(keys: Iterable[str], source: str) -> None:
    """Refuse dotted keys of which a later one would overwrite an earlier one, when they are set in this order.

    Raises:
        ConfigError: a key is given twice, or its section is set after it; `source` begins the message.
    """
    seen: dict[str, str] = {}
    for key in keys:
        parts = _parts(key, source)
        if (earlier := seen.get(key)) is not None:
            problem = "is given twice" if earlier == key else f"would overwrite {shown(earlier)}; give it first"
            raise ConfigError(f"{source}: {shown(key)} {problem}")
        for end in range(1, len(parts) + 1):
            seen.setdefault(".".join(parts[:end]), key)


def _parts(key: str, source: str) -> list[str]:
    parts = key.split(".")
    if not all(parts) or len(parts) > MAX_DEPTH:
        raise ConfigError(f"{source}: {shown(key)} is not a valid key: write section.key")
    return parts


def _check_seal(content: bytes, source: str) -> None:
    """Refuse a text that does not match the checksum at its end."""
    seal = SEAL.encode()
    # The last one, because a text with a checksum may have been written again.
    place = (b"\n" + content).rfind(b"\n" + seal)
    if place < 0:
        return
    found = content[place + len(seal) :].rstrip(b"\r\n")
    if found != hashlib.sha256(content[:place]).hexdigest().encode():
        raise ConfigError(
            f"{source}: was changed after it was written: it does not match its checksum, the last line; "
            "remove that line to accept the change"
        )
