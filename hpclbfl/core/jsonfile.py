"""JSON files: written with a checksum, read with types and bounds.

The last key of every object that is written is `checksum`, the SHA-256 of the rest. Files of older versions, which lack
it, are read as well.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from hpclbfl.core.errors import DataError
from hpclbfl.core.files import read_bytes, write_bytes

Kind = TypeVar("Kind")

MAX_BYTES = 64 << 20
"""Largest file; a list of ten thousand runs takes about 10 MB."""
SEAL = "checksum"


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object and its checksum atomically; NaN and infinity, which JSON lacks, become null.

    Raises:
        EnvironmentFault: the file cannot be written; one line that names it.
    """
    write_bytes(path, to_bytes(value))


def to_bytes(value: dict[str, Any]) -> bytes:
    """The content of the file that `write_json` writes."""
    plain = _without_nan({key: item for key, item in value.items() if key != SEAL})
    # As it will be read: keys are strings, tuples are lists.
    plain = json.loads(json.dumps(plain, allow_nan=False))
    sealed = {**plain, SEAL: _checksum(_canonical(plain))}
    return f"{json.dumps(sealed, indent=2, allow_nan=False)}\n".encode()


def read_json(path: Path, kind: type[Kind], limit: int = MAX_BYTES) -> Kind | None:
    """Read an object of this type (a dataclass, a pydantic model, `dict[str, Any]`); None if there is no file.

    Nothing is converted: a number in quotes is not a number. Unknown keys are ignored.

    Raises:
        DataError: it cannot be read, is too large, is not JSON, fails its checksum, or has a wrong value; one line.
    """
    try:
        content = read_bytes(path, limit)
    except FileNotFoundError:
        return None
    return parse_json(content, kind, str(path))


def parse_json(content: bytes | str, kind: type[Kind], source: str) -> Kind:
    """The object in a JSON text; `source` begins the error message. See `read_json`."""
    try:
        # The parser refuses lone surrogates and nesting deeper than 200 levels.
        value = from_json(content, allow_inf_nan=False)
        if not isinstance(value, dict):
            raise DataError(f"{source}: is damaged: holds no JSON object")
        seal = value.pop(SEAL, None)
        plain = _canonical(value)
        if seal is not None and seal != _checksum(plain):
            raise DataError(f"{source}: is damaged: its content does not match its checksum")
        adapter: TypeAdapter[Kind] = _adapter(kind)  # type: ignore[arg-type]
        return adapter.validate_json(plain, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"][0].lower() + first["msg"][1:]
        raise DataError(f"{source}: is damaged: {f'{where}: ' if where else ''}{message}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: is damaged: not JSON: {error}") from error


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _checksum(canonical: bytes) -> str:
    return hashlib.sha256(canonical).hexdigest()


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
