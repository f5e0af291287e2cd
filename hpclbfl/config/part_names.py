"""How a job names a part of the user's own: by a file and a class in it, or by a module.

`nets.py:WideNet` and `package.module:Class` are what people write. A validated job says which source it is, too:
`nets.py@1a2b3c4d5e6f:WideNet`, so that its digest, its run folder and its logs name the source. Nothing is imported
here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HASH_DIGITS = 12
KEYS = ("name", "kind", "policy", "change")
"""Under which a section names its component."""
LISTS = ("chain", "watch")
"""Under which a section lists components, by name or with their keys."""
_SOURCE = re.compile(rf"(?P<source>.+?)(?:@(?P<sha256>[0-9a-f]{{{HASH_DIGITS}}}))?", re.DOTALL)
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True)
class PartName:
    """A name with a colon, taken apart."""

    source: str
    """A path that ends in .py, or a module."""
    class_name: str
    sha256: str | None = None
    """The source's, its first digits; None: whatever the source is now."""

    @property
    def is_file(self) -> bool:
        """Whether the source is a file."""
        return self.source.endswith(".py")

    @property
    def brief(self) -> str:
        """As people write it, without folders: `nets.py:WideNet`."""
        return f"{Path(self.source).name if self.is_file else self.source}:{self.class_name}"

    def __str__(self) -> str:
        told = "" if self.sha256 is None else f"@{self.sha256}"
        return f"{self.source}{told}:{self.class_name}"


def parse_name(name: object) -> PartName | None:
    """Take the name of an own part apart; None: it is none, or is not written as one."""
    if not isinstance(name, str):
        return None
    source, _, class_name = name.rpartition(":")
    found = _SOURCE.fullmatch(source)
    if found is None or not class_name.isidentifier():
        return None
    part = PartName(found["source"], class_name, found["sha256"])
    return part if part.is_file or _MODULE.fullmatch(part.source) else None


def brief(name: str) -> str:
    """Any component's name as people write it."""
    part = parse_name(name)
    return name if part is None else part.brief


def digits(content: bytes) -> str:
    """The first digits of the SHA-256 that stand in a name."""
    return hashlib.sha256(content).hexdigest()[:HASH_DIGITS]


def find_names(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], PartName]]:
    """The own parts that a job names, wherever they stand, each with the keys that lead to it."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            here = (*path, str(key))
            part = parse_name(value) if key in KEYS else None
            if part is not None:
                yield here, part
            else:
                yield from find_names(value, here)
            for index, entry in enumerate(value if key in LISTS and isinstance(value, list | tuple) else ()):
                if (part := parse_name(entry)) is not None:
                    yield (*here, str(index)), part
    elif isinstance(values, list | tuple):
        for index, value in enumerate(values):
            yield from find_names(value, (*path, str(index)))


def with_names(values: Any, names: Mapping[tuple[str, ...], PartName], path: tuple[str, ...] = ()) -> Any:
    """A copy of a job's mapping with other names in these places."""
    if path in names:
        return str(names[path])
    if isinstance(values, Mapping):
        return {key: with_names(value, names, (*path, str(key))) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [with_names(value, names, (*path, str(index))) for index, value in enumerate(values)]
    return values


def anchored(values: dict[str, Any], folder: Path, other: Path, elsewhere: Iterable[str]) -> dict[str, Any]:
    """A job's mapping with the files of its own parts as absolute paths.

    Args:
        folder, other, elsewhere: see `hpclbfl.config.job.with_paths`.
    """
    keys = tuple(f"{key}." for key in elsewhere)
    names = {}
    for path, part in find_names(values):
        if part.is_file and part.sha256 is None:
            base = other if f"{'.'.join(path)}.".startswith(keys) else folder
            names[path] = replace(part, source=str(base.absolute() / part.source))
    found: dict[str, Any] = with_names(values, names) if names else values
    return found
