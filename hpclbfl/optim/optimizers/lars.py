"""LARS: timm's. Y. You et al., "Large Batch Training of Convolutional Networks", arXiv 1708.03888.

Per tensor, with ratio = eta |w| / (|g| + wd |w| + 1e-8), 1 where a norm is 0:

    buf = momentum * buf + ratio * (g + wd * w);  w -= lr * buf
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hpclbfl.config.components import OPTIMIZERS
from hpclbfl.config.sections.base import PositiveFloat
from hpclbfl.optim.optimizers import Groups
from hpclbfl.optim.optimizers.sgd import MomentumConfig

if TYPE_CHECKING:
    import torch


class LarsConfig(MomentumConfig):
    """See the module."""

    decay: Literal["all", "weights"] = "weights"
    trust_coefficient: PositiveFloat = 0.001
    """eta: a step of rate 1 moves a layer by at most this fraction of its norm."""

    adapts_layers: ClassVar[bool] = True


@OPTIMIZERS.register("lars", LarsConfig)
def make_lars(c: LarsConfig, groups: Groups) -> torch.optim.Optimizer:
    """See the module."""
    made: torch.optim.Optimizer = timm_optimizers().Lars(
        groups,
        lr=c.lr,
        momentum=c.momentum,
        nesterov=c.nesterov,
        weight_decay=c.weight_decay,
        trust_coeff=c.trust_coefficient,
        # Otherwise timm turns LARS into SGD, and LAMB into Adam, if the weight decay is 0.
        always_adapt=True,
    )
    return made


def timm_optimizers() -> Any:
    """timm.optim, imported after `hpclbfl.core.vision`; takes seconds."""
    import hpclbfl.core.vision  # noqa: F401

    # isort: split
    import timm.optim

    return timm.optim
