"""Stochastic gradient descent with momentum: torch's, fused."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import StrictBool, model_validator

from hpclbfl.config.components import OPTIMIZERS
from hpclbfl.config.sections import OptimizerConfig
from hpclbfl.config.sections.base import Fraction
from hpclbfl.optim.optimizers import Groups

if TYPE_CHECKING:
    import torch


class MomentumConfig(OptimizerConfig):
    """What SGD and LARS share."""

    momentum: Fraction = 0.0
    nesterov: StrictBool = False

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> MomentumConfig:
        if self.nesterov and not self.momentum:
            raise ValueError("'nesterov' needs a momentum above 0")
        return self


class SgdConfig(MomentumConfig):
    """torch.optim.SGD."""

    keeps_scale: ClassVar[bool] = True


@OPTIMIZERS.register("sgd", SgdConfig)
def make_sgd(c: SgdConfig, groups: Groups) -> torch.optim.Optimizer:
    """buf = momentum * buf + g + wd * w;  w -= lr * buf."""
    import torch

    return torch.optim.SGD(
        groups, lr=c.lr, momentum=c.momentum, nesterov=c.nesterov, weight_decay=c.weight_decay, fused=True
    )
