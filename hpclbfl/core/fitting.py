"""Checking that a saved state has the structure of the state that it is to replace.

A checkpoint with valid checksums may still come from another program. It is checked before any state is changed, so
that an older checkpoint can be used instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from hpclbfl.core.errors import DataError
from hpclbfl.core.text import shown


def check_like(like: Any, found: Any, key: str) -> None:
    """Compare types, keys, lengths and tensor shapes recursively.

    Args:
        like: the present state.
        found: the saved state.
        key: name of the state in messages.

    Raises:
        DataError: they differ.
    """
    if isinstance(like, Tensor):
        if type(found) is not Tensor or found.layout != torch.strided or found.is_meta:
            raise DataError(f"{key} is a {type(found).__name__} without plain values, not a tensor")
        if found.shape != like.shape or found.dtype != like.dtype:
            raise DataError(
                f"{key} has shape {list(found.shape)} and type {found.dtype}, not {list(like.shape)} and {like.dtype}"
            )
    elif like is None:
        if found is not None and not isinstance(found, Tensor | int | float):
            raise DataError(f"{key} is a {type(found).__name__}")
    elif isinstance(like, bool | str) or not isinstance(like, int | float):
        if type(found) is not type(like):
            raise DataError(f"{key} is a {type(found).__name__}, not a {type(like).__name__}")
        _check_parts(like, found, key)
    elif isinstance(found, bool) or not isinstance(found, int | float):
        raise DataError(f"{key} is {shown(found)}, not a number")


def _check_parts(like: Any, found: Any, key: str) -> None:
    if is_dataclass(like):
        for field in fields(like):
            check_like(getattr(like, field.name), getattr(found, field.name, None), f"{key}.{field.name}")
    elif isinstance(like, Mapping):
        if like.keys() != found.keys():
            raise DataError(f"{key} has the keys {shown(sorted(map(str, found)))}, not {shown(sorted(map(str, like)))}")
        for name in like:
            check_like(like[name], found[name], f"{key}.{name}")
    elif isinstance(like, list | tuple):
        if len(like) != len(found):
            raise DataError(f"{key} has {len(found)} entries, not {len(like)}")
        for index, (one, other) in enumerate(zip(like, found, strict=True)):
            check_like(one, other, f"{key}.{index}")


def placed_like(like: Any, found: Any) -> Any:
    """The saved state with each tensor on the device of its counterpart; see `check_like`."""
    if isinstance(like, Tensor) and isinstance(found, Tensor):
        return found.to(like.device)
    if is_dataclass(like) and not isinstance(like, type):
        moved = {f.name: placed_like(getattr(like, f.name), getattr(found, f.name)) for f in fields(like)}
        return replace(found, **moved)
    if isinstance(like, Mapping):
        return {key: placed_like(like[key], value) for key, value in found.items()}
    if isinstance(like, list | tuple):
        return type(like)(placed_like(one, other) for one, other in zip(like, found, strict=True))
    return found


def validated(adapter: TypeAdapter[Any], part: Mapping[str, Any], key: str) -> Any:
    """The value of a key, checked against the adapter's type. Raises DataError."""
    try:
        return adapter.validate_python(part.get(key), strict=True)
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"]
        raise DataError(f"{key} is {shown(part.get(key))}: {message[0].lower()}{message[1:]}") from error
