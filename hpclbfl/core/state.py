"""What a run must remember: who has something to remember, and what a checkpoint may hold.

Every part of a run that the next step depends on is `Stateful`, and is registered where it is made: nothing else names
it. A checkpoint holds tensors, plain values, and the dataclasses that are marked for it:

    @checkpointed
    @dataclass(frozen=True)
    class MyState: ...
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, TypeVar

Kind = TypeVar("Kind", bound=type)

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_TYPES: list[type] = []


class Stateful(Protocol):
    """A part of a run with something to remember."""

    def state_dict(self) -> dict[str, Any]:
        """Its state, by keys that no other part of the run uses; tensors are its own, not copies."""

    def check_state(self, found: Mapping[str, Any]) -> None:
        """Look at what all parts have saved, before any of them is changed. Raises DataError: its own does not fit."""

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """Go on from what all parts have saved; moves tensors to where they belong."""


def states_of(parts: Iterable[Stateful]) -> dict[str, Any]:
    """What all parts have to remember, in one mapping. Raises ValueError: two of them use the same key."""
    found: dict[str, Any] = {}
    for part in parts:
        own = part.state_dict()
        if twice := found.keys() & own.keys():
            raise ValueError(f"two parts of a run remember {', '.join(sorted(twice))}")
        found |= own
    return found


def checkpointed(kind: Kind) -> Kind:
    """Let a dataclass be restored from checkpoints; a decorator. Its fields hold what a checkpoint may hold."""
    if not is_dataclass(kind):
        raise TypeError(f"{kind.__name__} is no dataclass: a checkpoint holds its fields")
    _TYPES.append(kind)
    return kind


def checkpointed_types() -> list[type]:
    """All that are marked, of the modules that have been loaded."""
    return list(_TYPES)


def check_restorable(value: Any, where: str) -> None:
    """Refuse what could be saved, but not restored: before the save, not at a user's resume.

    Args:
        value: to be saved.
        where: what it is called.

    Raises:
        TypeError: it holds something else; one line that says where, and what.
    """
    kind = type(value)
    if kind in _PLAIN or _is_tensor(value):
        return
    if kind in _TYPES:
        for field in fields(value):
            check_restorable(getattr(value, field.name), f"{where}.{field.name}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_restorable(key, f"a key of {where}")
            check_restorable(item, f"{where}.{key}")
    elif kind in (list, tuple, set):
        for place, item in enumerate(value):
            check_restorable(item, f"{where}[{place}]")
    else:
        raise TypeError(
            f"{where} cannot be restored from a checkpoint: it is a {kind.__module__}.{kind.__qualname__}, neither a "
            "tensor nor a plain value, nor marked `checkpointed`"
        )


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)
