"""What a key of a job may hold, in words: from its type and bounds as pydantic has them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from hpclbfl.config.component_configs import nested_mark
from hpclbfl.config.components import NESTED
from hpclbfl.config.sections.base import PathText
from hpclbfl.core.registry import Registry

BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
SMALLEST, GREATEST = 1e-3, 1e6
"""Bounds beyond these keep arithmetic from overflowing; nobody meets them."""


def values_of(field: FieldInfo) -> str:
    """The values that a field takes, as Markdown."""
    mark = nested_mark(field)
    if mark is None or mark.name is not None:
        return ", or ".join(_words(field.annotation, field.metadata))
    if nested_registry(field) is not None:
        return "mapping"
    names = [f"`{name}`" for name in (*mark.words, *NESTED[mark.kind].names())]
    return f"list of {', '.join(names)} and your own" if mark.many else f"{', '.join(names)}, or your own"


def defaults_of(config: type[BaseModel], given: dict[str, Any]) -> dict[str, str]:
    """Defaults of a section's fields as YAML, as they come out where a job leaves all of them out.

    Args:
        config: the section.
        given: what a job has to state.
    """
    try:
        made: BaseModel | None = config.model_validate(given)
    except ValidationError:
        # It needs more than that.
        made = None
    found = {}
    for name, field in config.model_fields.items():
        if field.is_required():
            found[name] = "required"
            continue
        value = getattr(made, name) if made is not None else field.get_default(call_default_factory=True)
        if isinstance(value, BaseModel):
            value = value.model_dump(mode="json", exclude_unset=True)
        found[name] = f"`{_yaml(value)}`"
    return found


def sections_of(field: FieldInfo) -> list[type[BaseModel]]:
    """The sections that a key holds; a component within it is one where the key alone says which."""
    mark = nested_mark(field)
    if mark is None:
        return sections_in(field.annotation)
    return [] if mark.name is None else [NESTED[mark.kind].config(mark.name)]


def nested_registry(field: FieldInfo) -> Registry[Any] | None:
    """The components of which a key holds one, where these have keys of their own; else None."""
    mark = nested_mark(field)
    if mark is None or mark.name is not None or mark.many:
        return None
    registry = NESTED[mark.kind]
    return registry if registry.keys() - {registry.key} else None


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a type is made of, nested ones not included."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for inner in get_args(annotation) for found in sections_in(inner)]


def _words(annotation: Any, metadata: Iterable[Any] = (), plural: bool = False) -> list[str]:
    """Each kind of value that a type takes; null is left out, as it is the default where it is taken."""
    if annotation == PathText:
        return ["path"]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(inner[0], [*inner[1:], *metadata], plural)
    if origin in (Union, UnionType):
        return [word for member in inner if member is not NoneType for word in _words(member, metadata, plural)]
    if origin is Literal:
        return [", ".join(f"`{_yaml(choice)}`" for choice in inner)]
    if origin is list:
        origin, inner = tuple, (inner[0], Ellipsis)
    if origin is tuple:
        open_ended = inner[-1] is Ellipsis
        items = inner[:1] if open_ended else tuple(dict.fromkeys(inner))
        each = " or ".join(word for item in items for word in _words(item, plural=True))
        return [f"list of {each}" if open_ended else f"list of {len(inner)} {each}"]
    ending = "s" * plural
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return [f"mapping{ending}"]
    if annotation is Any:
        return [f"value{ending}"]
    if annotation is bool:
        return ["`true`, `false`"]
    name = {int: "whole number", float: "number", str: "text"}[annotation]
    return [" ".join([f"{name}{ending}", *([_bounds(metadata)] if _bounds(metadata) else [])])]


def _bounds(metadata: Iterable[Any]) -> str:
    """`> 0 and ≤ 1`."""
    found: dict[str, float] = {}
    for constraint in _flat(metadata):
        for key in BOUNDS:
            bound = getattr(constraint, key, None)
            if isinstance(bound, int | float) and abs(bound) < GREATEST:
                found[key] = bound
    if 0 < found.get("ge", 0) <= SMALLEST:
        found = {"gt": 0, **{key: bound for key, bound in found.items() if key != "ge"}}
    return " and ".join(f"{word} {found[key]:,g}" for key, word in BOUNDS.items() if key in found)


def _flat(metadata: Iterable[Any]) -> Iterable[Any]:
    """Constraints, also those that pydantic keeps within a `Field(...)`."""
    for constraint in metadata:
        yield from constraint.metadata if isinstance(constraint, FieldInfo) else [constraint]


def _yaml(value: Any) -> str:
    """One line of YAML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_yaml(item) for item in value) + "]"
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)
