"""Adam (D. P. Kingma, J. Ba, ICLR 2015): torch's, fused. Decay is added to the gradient.

With the bias-corrected moments m and v of g + wd * w:

    w -= lr * m / (sqrt(v) + eps)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpclbfl.config.components import OPTIMIZERS
from hpclbfl.config.sections import OptimizerConfig
from hpclbfl.config.sections.base import Fraction, PositiveFloat
from hpclbfl.optim.optimizers import Groups

if TYPE_CHECKING:
    import torch


class AdamConfig(OptimizerConfig):
    """Keys of Adam and AdamW."""

    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Decay rates of the averages of the gradient and of its square."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the averaged square."""


@OPTIMIZERS.register("adam", AdamConfig)
def make_adam(c: AdamConfig, groups: Groups) -> torch.optim.Optimizer:
    """See the module."""
    import torch

    return torch.optim.Adam(groups, lr=c.lr, betas=c.betas, eps=c.eps, weight_decay=c.weight_decay, fused=True)
