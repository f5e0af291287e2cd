"""Sections of a job file: what all nets share, and what all losses share."""

from __future__ import annotations

from typing import Any

from hpclbfl.config.sections.base import Section


class ModelConfig(Section):
    """The net."""

    name: str
    """Which net."""

    def check(self, data: Any) -> None:
        """Refuse data, a `hpclbfl.models.DataSpec`, that the net does not take. Raises ConfigError."""


class LossConfig(Section):
    """What is minimised, a mean over the samples, or over what a loss counts."""

    name: str
    """Which loss."""
