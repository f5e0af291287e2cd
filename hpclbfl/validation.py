"""From a mapping to a validated section, with errors of one line that say which key, and what would be right."""

from __future__ import annotations

import difflib
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from hpclbfl.errors import ConfigError
from hpclbfl.sections.base import Section

Model = TypeVar("Model", bound=Section)
_SHOWN = 3
"""Errors at once."""


def validated(model: type[Model], values: dict[str, Any], source: str, whole: str = "whole") -> Model:
    """Build a section from a mapping.

    Args:
        model: the section's class.
        values: the mapping.
        source: begins the line of an error: the file.
        whole: what to name where the error is no single key's.

    Raises:
        ConfigError: a key or value is wrong; one line that names `source`, the key and what would be right.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_explain(e, model, source, whole) for e in error.errors()[:_SHOWN]]
        raise ConfigError("; ".join(lines)) from error


def _explain(error: Any, root: type[Section], source: str, whole: str) -> str:
    path, field, model = _locate(error["loc"], root)
    key, kind = ".".join(path), error["type"]
    if kind == "extra_forbidden":
        valid = [field.alias or name for name, field in model.model_fields.items()]
        *parents, last = path
        near = difflib.get_close_matches(last, valid, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        where = f"under '{'.'.join(parents)}'" if parents else "here"
        return f"{source}: unknown key '{key}': {hint}valid {where}: {', '.join(valid)}"
    if kind == "missing":
        return f"{source}: '{key}' is missing"
    if kind == "union_tag_not_found":
        return f"{source}: '{key}.kind' is missing: {' or '.join(_kinds(field))}"
    if kind == "union_tag_invalid":
        return f"{source}: {key}.kind: '{error['ctx']['tag']}' is not known: {' or '.join(_kinds(field))}"
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    shown = f", not {given!r}" if isinstance(given, str | int | float | bool | list) else ""
    return f"{source}: {key or whole}: {message[0].lower() + message[1:]}{shown}"


def _locate(
    location: tuple[int | str, ...], root: type[Section]
) -> tuple[list[str], FieldInfo | None, type[BaseModel]]:
    """The keys as the user wrote them, the last one's field, and the section that holds it.

    pydantic's locations also name the branch of a union that it tried.
    """
    path: list[str] = []
    model: type[BaseModel] = root
    field: FieldInfo | None = None
    for index, part in enumerate(location):
        branches = _kinds(field)
        if part in branches:
            model, field = branches[str(part)], None
            continue
        path.append(str(part))
        field = model.model_fields.get(str(part))
        if index < len(location) - 1 and field is not None:
            # A section, or one that may be absent: `Section | None`.
            for annotation in get_args(field.annotation) or (field.annotation,):
                if isinstance(annotation, type) and issubclass(annotation, BaseModel) and not _kinds(field):
                    model = annotation
    return path, field, model


def _kinds(field: FieldInfo | None) -> dict[str, type[BaseModel]]:
    """The sections that a field may hold, by their `kind`; none for a field without that choice."""
    if field is None or field.discriminator != "kind":
        return {}
    return {get_args(branch.model_fields["kind"].annotation)[0]: branch for branch in get_args(field.annotation)}
