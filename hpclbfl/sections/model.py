"""Sections of a job file: the net and its loss."""

from __future__ import annotations

from typing import Literal

from hpclbfl.sections.base import Fraction, Section


class ModelConfig(Section):
    """Which net."""

    name: str
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """ResNets alone: a 7x7 stride-2 convolution with pooling, or a 3x3 one (6 times the work at 32 px)."""
    dropout: Fraction | None = None
    """VGG, AlexNet and the ViTs; null: the net's own (0.5; 0 for ViTs)."""


class LossConfig(Section):
    """Cross-entropy."""

    label_smoothing: Fraction = 0.0
