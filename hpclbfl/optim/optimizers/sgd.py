"""Stochastic gradient descent with momentum: torch's, fused.

For a parameter w with gradient g, momentum mu and decay wd:

    buf = mu * buf + g + wd * w;  w -= lr * buf
"""

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
    """Keys that SGD and LARS share."""

    momentum: Fraction = 0.0
    """Momentum."""
    nesterov: StrictBool = False
    """Nesterov's momentum."""

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> MomentumConfig:
        if self.nesterov and not self.momentum:
            raise ValueError("'nesterov' needs a momentum above 0")
        return self


class SgdConfig(MomentumConfig):
    """See the module."""

    keeps_scale: ClassVar[bool] = True


@OPTIMIZERS.register("sgd", SgdConfig)
def make_sgd(c: SgdConfig, groups: Groups) -> torch.optim.Optimizer:
    """See the module."""
    import torch

    return torch.optim.SGD(
        groups, lr=c.lr, momentum=c.momentum, nesterov=c.nesterov, weight_decay=c.weight_decay, fused=True
    )
