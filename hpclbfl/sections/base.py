"""What all sections of a job file share: they are frozen and refuse unknown keys and wrong types."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """One section of a job file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, serialize_by_alias=True)

    @model_validator(mode="before")
    @classmethod
    def _no_bool_for_number(cls, values: Any) -> Any:
        # pydantic turns `yes` into 1 where a number is wanted; a slip of the pen, never a wish.
        if isinstance(values, dict):
            for key, value in values.items():
                field = cls.model_fields.get(key)
                if isinstance(value, bool) and field is not None and not _takes_bool(field.annotation):
                    raise ValueError(f"'{key}' takes no true or false")
        return values


def _takes_bool(annotation: Any) -> bool:
    return "bool" in str(annotation)
