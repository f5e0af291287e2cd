"""LAMB: timm's.

Y. You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", arXiv 1904.00962. Per tensor,
with Adam's bias-corrected moments m and v; the ratio of norms is 1 where a norm is 0:

    u = m / (sqrt(v) + eps) + wd * w;  w -= lr * (|w| / |u|) * u
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from hpclbfl.config.components import OPTIMIZERS
from hpclbfl.config.sections.base import PositiveFloat
from hpclbfl.optim.optimizers import Groups
from hpclbfl.optim.optimizers.adam import AdamConfig
from hpclbfl.optim.optimizers.lars import timm_optimizers

if TYPE_CHECKING:
    import torch


class LambConfig(AdamConfig):
    """See the module."""

    decay: Literal["all", "weights"] = "weights"
    eps: PositiveFloat = 1e-6

    adapts_layers: ClassVar[bool] = True


@OPTIMIZERS.register("lamb", LambConfig)
def make_lamb(c: LambConfig, groups: Groups) -> torch.optim.Optimizer:
    """See the module."""
    made: torch.optim.Optimizer = timm_optimizers().Lamb(
        groups,
        lr=c.lr,
        betas=c.betas,
        eps=c.eps,
        weight_decay=c.weight_decay,
        # Clipping by the global norm would undo a factor on the gradient.
        max_grad_norm=None,
        always_adapt=True,
    )
    return made
