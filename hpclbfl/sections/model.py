"""Sections of a job file: the net and its loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import StringConstraints, model_validator

from hpclbfl.core.text import shown
from hpclbfl.sections.base import Fraction, Section

WITH_STEM = ("resnet18", "resnet50")
"""Nets that read `stem`."""
WITH_DROPOUT = ("vgg11", "vgg11_bn", "alexnet", "vit_b_16", "vit_cifar", "vgg_small", "alexnet_small")
"""Nets that read `dropout`."""


class ModelConfig(Section):
    """Which net."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """ResNets alone: a 7x7 stride-2 convolution with pooling, or a 3x3 one (6 times the work at 32 px)."""
    dropout: Fraction | None = None
    """VGG, AlexNet and the ViTs; null: the net's own (0.5; 0 for ViTs)."""

    @model_validator(mode="after")
    def _own_keys(self) -> ModelConfig:
        if self.stem == "cifar" and self.name not in WITH_STEM:
            raise ValueError(f"'stem: cifar' goes with {' and '.join(WITH_STEM)}, not {shown(self.name)}")
        if self.dropout is not None and self.name not in WITH_DROPOUT:
            raise ValueError(f"'dropout' goes with {', '.join(WITH_DROPOUT)}, not {shown(self.name)}")
        return self


class LossConfig(Section):
    """Cross-entropy."""

    label_smoothing: Fraction = 0.0
