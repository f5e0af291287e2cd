"""Sections of a job file: the optimizer and the learning rate over the run."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import StrictBool, model_validator

from hpclbfl.sections.base import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Section

_KINDRED = {"sgd": "adam", "adam": "sgd", "adamw": "sgd", "lars": "lamb", "lamb": "lars"}
"""The optimizer to name to somebody who gave momentum to one with betas, or the reverse."""

_LARGEST_FALL = 300
"""Decimal places by which all milestones together may change the rate."""


class OptimizerConfig(Section):
    """The local optimizer: torch's SGD, Adam or AdamW, timm's LARS or LAMB (see `hpclbfl.optim.optimizers`)."""

    name: Literal["sgd", "adam", "adamw", "lars", "lamb"] = "sgd"
    lr: PositiveFloat = 0.1
    momentum: Fraction = 0.0
    """sgd, lars."""
    nesterov: StrictBool = False
    """sgd, lars."""
    weight_decay: NonNegativeFloat = 0.0
    decay: Literal["all", "weights"] = "all"
    """weights: no decay (and no trust ratio) for norm parameters and biases, the tensors of fewer than 2 dimensions;
    null or left out: all for sgd, adam and adamw, weights for lars and lamb."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """adam, adamw, lamb."""
    eps: PositiveFloat = 1e-8
    """adam, adamw, lamb; null or left out: 1e-8, for lamb 1e-6."""
    trust_coefficient: PositiveFloat = 0.001
    """lars: eta, the part of a layer's norm that a step of rate 1 may move it."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_name(cls, values: Any) -> Any:
        # Written out instead of left null, so that the hash tells what is run.
        if not isinstance(values, dict):
            return values
        name = values.get("name", "sgd")
        defaults = {
            "decay": "weights" if name in ("lars", "lamb") else "all",
            "eps": 1e-6 if name == "lamb" else 1e-8,
        }
        return {**values, **{key: default for key, default in defaults.items() if values.get(key) is None}}

    @model_validator(mode="after")
    def _own_keys(self) -> OptimizerConfig:
        has_momentum = self.name in ("sgd", "lars")
        if self.nesterov and not (has_momentum and self.momentum > 0):
            wanted = self.name if has_momentum else "sgd or lars"
            raise ValueError(f"'nesterov' needs name {wanted} and a momentum above 0")
        kindred = _KINDRED[self.name]
        if self.momentum and not has_momentum:
            raise ValueError(f"'momentum' goes with {kindred}; {self.name} takes 'betas'")
        if has_momentum and self.betas != (0.9, 0.999):
            raise ValueError(f"'betas' goes with {kindred}; {self.name} takes 'momentum'")
        if has_momentum and self.eps != 1e-8:
            raise ValueError(f"'eps' goes with {kindred}; {self.name} has none to set")
        if self.trust_coefficient != 0.001 and self.name != "lars":
            raise ValueError(f"'trust_coefficient' goes with lars, not {self.name}")
        return self


class ScheduleConfig(Section):
    """The learning rate over the run, in epochs (global samples / training set size)."""

    kind: Literal["constant", "multistep", "cosine", "tvlars"] = "constant"
    milestones_epochs: tuple[PositiveFloat, ...] = ()
    gamma: PositiveFloat = 0.1
    total_epochs: PositiveFloat | None = None
    """cosine: where the rate reaches 0; null: the end of the run."""
    alpha: PositiveFloat = 1.0
    """tvlars: 1 / alpha bounds the factor (see `hpclbfl.optim.tvlars`)."""
    rate: PositiveFloat | None = None
    """tvlars: lambda, steepness of the fall, per epoch."""
    delay_epochs: NonNegativeFloat | None = None
    """tvlars: d, the middle of the fall."""
    floor: NonNegativeFloat = 0.0
    """tvlars: gamma_min, what stays of the factor."""
    warmup_epochs: NonNegativeFloat = 0.0
    """Rise in equal steps over this many epochs: to lr from zero, or when scaled from lr to the scaled rate."""
    scaling: Literal["none", "linear", "sqrt"] = "none"
    """linear: lr * B / reference_batch_size; sqrt: lr * sqrt(B / reference_batch_size)."""
    reference_batch_size: PositiveInt | None = None

    @model_validator(mode="after")
    def _own_keys(self) -> ScheduleConfig:
        if (self.kind == "multistep") != bool(self.milestones_epochs):
            raise ValueError("'milestones_epochs' goes with kind multistep, and only with it")
        if list(self.milestones_epochs) != sorted(set(self.milestones_epochs)):
            raise ValueError("'milestones_epochs' must rise")
        if self.gamma != 0.1 and self.kind != "multistep":
            raise ValueError("'gamma' goes with kind multistep")
        if len(self.milestones_epochs) * abs(math.log10(self.gamma)) > _LARGEST_FALL:
            raise ValueError("'gamma' to the power of all its milestones is beyond what a number can hold")
        if self.total_epochs is not None and self.kind != "cosine":
            raise ValueError("'total_epochs' goes with kind cosine")
        if (self.scaling != "none") != (self.reference_batch_size is not None):
            given = "linear (or sqrt)" if self.scaling == "none" else self.scaling
            raise ValueError(f"'scaling: {given}' and 'reference_batch_size' go together")
        return self

    @model_validator(mode="after")
    def _tvlars_keys(self) -> ScheduleConfig:
        if self.kind == "tvlars":
            if self.rate is None or self.delay_epochs is None:
                raise ValueError("kind tvlars needs 'rate' (per epoch) and 'delay_epochs'")
            if self.warmup_epochs:
                raise ValueError("'warmup_epochs' does not go with kind tvlars, which replaces the warm-up")
            return self
        defaults = {"alpha": 1.0, "rate": None, "delay_epochs": None, "floor": 0.0}
        for key, default in defaults.items():
            if getattr(self, key) != default:
                raise ValueError(f"'{key}' goes with kind tvlars")
        return self
