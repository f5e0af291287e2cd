"""From a mapping to a validated section, with errors of one line that say which key, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from itertools import islice
from types import NoneType, UnionType
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from hpclbfl.config.sections.base import Section
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.text import MAX_SHOWN, printable, shown

Model = TypeVar("Model", bound=Section)
_SHOWN = 3
"""Errors at once."""
_MESSAGES = {
    "bool_type": "should be true or false",
    "dict_type": "should be a mapping",
    "list_type": "should be a list",
    "model_type": "should be a mapping",
    "string_type": "should be a text",
    "tuple_type": "should be a list",
}
"""Of errors that pydantic tells in Python's words."""
_LOOKED_AT = 100
"""Errors that are looked at: a long list may have one for each of its items."""


def validated(
    model: type[Model], values: dict[str, Any], source: str, within: Sequence[str] = (), **context: Any
) -> Model:
    """Build a section from a mapping.

    Args:
        model: the section's class.
        values: the mapping.
        source: begins the line of an error: the file.
        within: keys of the sections around it.
        context: what else validators may ask for.

    Raises:
        ConfigError: a key or value is wrong; one line that names `source`, the key and what would be right.
    """
    try:
        return model.model_validate(values, context={"source": source, **context})
    except ValidationError as error:
        source = printable(source)
        # A value that may be of several types has errors for each: the one that got furthest tells most.
        best: dict[str, tuple[int, str]] = {}
        found = list(islice(error.errors(include_url=False), _LOOKED_AT))
        for one in found:
            # Pydantic counts what is left of a list once it has dropped the items that are wrong.
            loc = one["loc"]
            if one["type"] == "too_short" and any(o["loc"][: len(loc)] == loc for o in found if o is not one):
                continue
            place = _locate(loc, model, within)
            if place.group not in best or len(loc) > best[place.group][0]:
                best[place.group] = len(loc), _explain(one, place)
        lines = [f"{source}: {line}" for _, line in islice(best.values(), _SHOWN)]
        raise ConfigError("; ".join(lines)) from error


class _Place(NamedTuple):
    """Where an error is."""

    path: list[str]
    """The keys as the user wrote them."""
    group: str
    """The key whose value is wrong, without what lies within it where it may be of several types."""
    model: type[BaseModel]
    """The section that holds it."""


def _explain(error: Any, place: _Place) -> str:
    kind, key = error["type"], printable(".".join(place.path), MAX_SHOWN)
    if kind == "extra_forbidden":
        # What is left out of a job that is written is not for a user to set.
        valid = [field.alias or name for name, field in place.model.model_fields.items() if not field.exclude]
        *parents, last = place.path
        hint = suggestion(last, valid)
        where = f"under '{'.'.join(parents)}'" if parents else "here"
        return f"unknown key '{key}': {hint}valid {where}: {', '.join(valid)}"
    if kind == "missing":
        return f"'{key}' is missing"
    message = _MESSAGES.get(kind) or error["msg"].removeprefix("Value error, ")
    return f"{f'{key}: ' if key else ''}{message[0].lower() + message[1:]}{_not_this(error.get('input'))}"


def suggestion(word: str, known: Iterable[str]) -> str:
    """`did you mean 'lr'? ` where one of the known words is near; else empty."""
    near = nearest(word, known)
    return f"did you mean '{near}'? " if near else ""


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that is most like this one; empty: none is."""
    near = difflib.get_close_matches(word[:MAX_SHOWN], list(known), n=1)
    return near[0] if near else ""


def _not_this(value: Any) -> str:
    """The value that was given, in YAML's words; nothing for a whole section."""
    if value is None or isinstance(value, bool):
        return f", not {'null' if value is None else str(value).lower()}"
    return f", not {shown(value)}" if isinstance(value, str | int | float | list) else ""


def _locate(location: tuple[int | str, ...], root: type[Section], within: Sequence[str]) -> _Place:
    """What a location of pydantic's stands for; it also names the branch of a union that was tried."""
    path = list(within)
    group: str | None = None
    model: type[BaseModel] = root
    field: FieldInfo | None = None
    for index, part in enumerate(location):
        if _is_choice(field):
            group, field = ".".join(path), None
            continue
        path.append(str(part))
        field = next((f for name, f in model.model_fields.items() if part in (name, f.alias)), None)
        if index < len(location) - 1 and field is not None:
            # A section, or one that may be absent: `Section | None`.
            for annotation in get_args(field.annotation) or (field.annotation,):
                if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                    model = annotation
    return _Place(path, ".".join(path) if group is None else group, model)


def _is_choice(field: FieldInfo | None) -> bool:
    """Whether a field takes values of several types, each of which pydantic tries and names."""
    if field is None or get_origin(field.annotation) not in (Union, UnionType):
        return False
    return sum(member is not NoneType for member in get_args(field.annotation)) > 1
