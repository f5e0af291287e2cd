"""What all sections of a job file share: they are frozen and refuse unknown keys and wrong types.

Numbers are taken as people write them: 12, 12.0 and 1e3 are whole numbers; a text such as '12' and a truth value are no
numbers. All have bounds, far beyond what makes sense, within which arithmetic on them cannot overflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

LARGEST = 10**15


class Section(BaseModel):
    """One section of a job file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, serialize_by_alias=True)


@dataclass(frozen=True)
class Nested:
    """Marks a key of a section whose value is a component, or a list of them; see `hpclbfl.config.components`."""

    kind: str
    """Of component."""
    name: str | None = None
    """Of the component, where the key alone says which; None: the value names it."""
    many: bool = False
    """Whether the value is a list."""
    watched: bool = False
    """Of a detector: whether it is measured in every step for whoever names it; see `hpclbfl.gradients.watch`."""
    words: tuple[str, ...] = ()
    """Values that are no component."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: Any) -> Any:
    if not _is_number(value) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError("should be a whole number")
    return int(value)


def _number(value: Any) -> Any:
    if not _is_number(value):
        raise ValueError("should be a number")
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[float, BeforeValidator(_number)]
PositiveInt = Annotated[Whole, Field(gt=0, le=LARGEST)]
NonNegativeInt = Annotated[Whole, Field(ge=0, le=LARGEST)]
PositiveFloat = Annotated[Number, Field(gt=0.0, le=LARGEST)]
NonNegativeFloat = Annotated[Number, Field(ge=0.0, le=LARGEST)]
Fraction = Annotated[Number, Field(ge=0.0, lt=1.0)]
Share = Annotated[Number, Field(ge=0.0, le=1.0)]
Seconds = Annotated[Number, Field(gt=0.0, le=1e9)]
"""Of a wait, within what a timer takes: thirty years."""
Seed = Annotated[Whole, Field(ge=0, lt=2**63)]
Name = Annotated[str, StringConstraints(max_length=100)]
"""Becomes part of the name of a file or a folder."""


@dataclass(frozen=True)
class _IsPath:
    """Marks a text as a path."""


PathText = Annotated[str, StringConstraints(min_length=1, max_length=4096), _IsPath()]
"""A path, relative to the job file; `config.job.with_paths` makes it absolute."""


def path_fields(config: type[Section]) -> list[str]:
    """Names of a section's fields that are paths."""
    return [
        name
        for name, field in config.model_fields.items()
        if _IsPath() in field.metadata or any(_IsPath() in get_args(member) for member in get_args(field.annotation))
    ]
