"""Sections of a job file: what all nets share, and the loss."""

from __future__ import annotations

from hpclbfl.config.sections.base import Fraction, Section


class ModelConfig(Section):
    """The net."""

    name: str
    """Which net."""


class LossConfig(Section):
    """Cross-entropy."""

    label_smoothing: Fraction = 0.0
    """Part of the target that is spread evenly over all classes."""
