"""Sections of a job file: the optimizer and the learning rate over the run."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, StrictBool, model_validator

from hpclbfl.sections.base import Fraction, Section


class OptimizerConfig(Section):
    """The local optimizer: torch's SGD, Adam or AdamW."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: PositiveFloat = 0.1
    momentum: Fraction = 0.0
    nesterov: StrictBool = False
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> OptimizerConfig:
        if self.nesterov and not (self.name == "sgd" and self.momentum > 0):
            raise ValueError("'nesterov' needs name sgd and a momentum above 0")
        if self.momentum and self.name != "sgd":
            raise ValueError(f"'momentum' goes with sgd; {self.name} takes 'betas'")
        return self


class ScheduleConfig(Section):
    """The learning rate over the run, in epochs (global samples / training set size)."""

    kind: Literal["constant", "multistep", "cosine"] = "constant"
    milestones_epochs: tuple[PositiveFloat, ...] = ()
    gamma: PositiveFloat = 0.1
    total_epochs: PositiveFloat | None = None
    """cosine: where the rate reaches 0; null: the end of the run."""
    warmup_epochs: NonNegativeFloat = 0.0
    """Rise in equal steps over this many epochs: to lr from zero, or when scaled from lr to the scaled rate."""
    scaling: Literal["none", "linear"] = "none"
    """linear: lr * B / reference_batch_size (Goyal et al. 2017)."""
    reference_batch_size: PositiveInt | None = None

    @model_validator(mode="after")
    def _own_keys(self) -> ScheduleConfig:
        if (self.kind == "multistep") != bool(self.milestones_epochs):
            raise ValueError("'milestones_epochs' goes with kind multistep, and only with it")
        if list(self.milestones_epochs) != sorted(set(self.milestones_epochs)):
            raise ValueError("'milestones_epochs' must rise")
        if self.total_epochs is not None and self.kind != "cosine":
            raise ValueError("'total_epochs' goes with kind cosine")
        if (self.scaling != "none") != (self.reference_batch_size is not None):
            raise ValueError("'scaling: linear' and 'reference_batch_size' go together")
        return self
