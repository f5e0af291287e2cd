"""AdamW (I. Loshchilov, F. Hutter, ICLR 2019): torch's, fused. Decay is decoupled from the gradient.

With the bias-corrected moments m and v of g:

    w -= lr * (m / (sqrt(v) + eps) + wd * w)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpclbfl.config.components import OPTIMIZERS
from hpclbfl.optim.optimizers import Groups
from hpclbfl.optim.optimizers.adam import AdamConfig

if TYPE_CHECKING:
    import torch


@OPTIMIZERS.register("adamw", AdamConfig)
def make_adamw(c: AdamConfig, groups: Groups) -> torch.optim.Optimizer:
    """See the module."""
    import torch

    return torch.optim.AdamW(groups, lr=c.lr, betas=c.betas, eps=c.eps, weight_decay=c.weight_decay, fused=True)
