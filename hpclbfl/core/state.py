"""State of a run: the protocol of the parts that have state, and the values that a checkpoint may hold.

Every part of a run on which the next step depends is `Stateful` and is registered where it is created. A checkpoint
holds tensors, plain values, and dataclasses with this decorator:

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
    """A part of a run that has state."""

    def state_dict(self) -> dict[str, Any]:
        """Its state, by keys that no other part of the run uses; tensors are not copied."""

    def check_state(self, found: Mapping[str, Any]) -> None:
        """Check its part of the saved states of all parts, before any part is changed. Raises DataError."""

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """Restore its state from the saved states of all parts; moves tensors to their devices."""


def states_of(parts: Iterable[Stateful]) -> dict[str, Any]:
    """The states of all parts in one mapping. Raises ValueError if two parts use the same key."""
    found: dict[str, Any] = {}
    for part in parts:
        own = part.state_dict()
        if twice := found.keys() & own.keys():
            raise ValueError(f"two parts of a run have a state called {', '.join(sorted(twice))}")
        found |= own
    return found


def checkpointed(kind: Kind) -> Kind:
    """Allow a dataclass in checkpoints; a decorator."""
    if not is_dataclass(kind):
        raise TypeError(f"{kind.__name__} is not a dataclass: a checkpoint holds its fields")
    _TYPES.append(kind)
    return kind


def checkpointed_types() -> list[type]:
    """All `checkpointed` dataclasses of the modules that have been imported."""
    return list(_TYPES)


def check_restorable(value: Any, where: str) -> None:
    """Refuse a value that could be saved but not restored.

    Args:
        value: to be saved.
        where: its name in messages.

    Raises:
        TypeError: it contains something else than a checkpoint may hold; one line that says what and where.
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


def as_plain(value: Any, clone: bool = False) -> Any:
    """A state with mappings in place of dataclasses, for torch.save.

    Args:
        clone: copy the tensors.
    """
    if is_dataclass(value):
        return {field.name: as_plain(getattr(value, field.name), clone) for field in fields(value)}
    if isinstance(value, list | tuple):
        return [as_plain(item, clone) for item in value]
    return value.clone() if clone and _is_tensor(value) else value


def from_plain(like: Any, value: Any) -> Any:
    """The state that `as_plain` made plain, with the dataclasses of a fresh one. Raises KeyError or TypeError."""
    if is_dataclass(like) and not isinstance(like, type):
        names = [field.name for field in fields(like)]
        if not isinstance(value, Mapping) or set(value) != set(names):
            raise TypeError(f"no {type(like).__name__}")
        return type(like)(**{name: from_plain(getattr(like, name), value[name]) for name in names})
    if isinstance(like, list | tuple):
        if not isinstance(value, list | tuple) or len(value) != len(like):
            raise TypeError(f"not {len(like)} values")
        return type(like)(from_plain(one, item) for one, item in zip(like, value, strict=True))
    return value


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)
