"""Optimizers by name: torch's SGD, Adam and AdamW in their fused form, timm's LARS and LAMB.

LARS: Y. You et al., "Large Batch Training of Convolutional Networks", arXiv 1708.03888. Per tensor, with
ratio = eta |w| / (|g| + wd |w| + 1e-8):

    buf = momentum * buf + ratio * (g + wd * w);  w -= lr * buf

LAMB: Y. You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", arXiv 1904.00962. Per
tensor, with Adam's bias-corrected moments m and v:

    u = m / (sqrt(v) + eps) + wd * w;  w -= lr * (|w| / |u|) * u

In both the ratio is 1 where a norm is 0. Norm parameters and biases take part in neither decay nor ratio unless the
job says `decay: all`. Leaving them out of the decay is large-batch practice with SGD, too: P. Goyal et al., arXiv
1706.02677 (norm parameters), X. Jia et al., arXiv 1807.11205 (biases as well).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from hpclbfl.optim.slots import reset_slots
from hpclbfl.sections import OptimizerConfig

Groups = list[dict[str, Any]]
"""torch's parameter groups: the parameters, and the options that differ from the optimizer's."""


def make_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer with its state laid out; one group, or two if only weights decay."""
    made = _OPTIMIZERS[config.name](parameter_groups(config, parameters), config)
    reset_slots(made)
    return made


def parameter_groups(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> Groups:
    """Weights, then what neither decays nor is adapted (tensors of fewer than 2 dimensions); none is empty."""
    everything = list(parameters)
    if config.decay == "all":
        return [{"params": everything}]
    exempt: dict[str, Any] = {"weight_decay": 0.0}
    if config.name in ("lars", "lamb"):
        exempt["always_adapt"] = False
    weights = [p for p in everything if p.ndim >= 2]
    others = [p for p in everything if p.ndim < 2]
    groups: Groups = [{"params": weights}, {"params": others, **exempt}]
    return [group for group in groups if group["params"]]


def _sgd(groups: Groups, c: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        groups, lr=c.lr, momentum=c.momentum, nesterov=c.nesterov, weight_decay=c.weight_decay, fused=True
    )


def _adam(groups: Groups, c: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=c.lr, betas=c.betas, eps=c.eps, weight_decay=c.weight_decay, fused=True)


def _adamw(groups: Groups, c: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=c.lr, betas=c.betas, eps=c.eps, weight_decay=c.weight_decay, fused=True)


def _lars(groups: Groups, c: OptimizerConfig) -> torch.optim.Optimizer:
    made: torch.optim.Optimizer = _timm().Lars(
        groups,
        lr=c.lr,
        momentum=c.momentum,
        nesterov=c.nesterov,
        weight_decay=c.weight_decay,
        trust_coeff=c.trust_coefficient,
        # timm would turn LARS into SGD, and LAMB into Adam, where the job's weight decay is 0.
        always_adapt=True,
    )
    return made


def _lamb(groups: Groups, c: OptimizerConfig) -> torch.optim.Optimizer:
    made: torch.optim.Optimizer = _timm().Lamb(
        groups,
        lr=c.lr,
        betas=c.betas,
        eps=c.eps,
        weight_decay=c.weight_decay,
        # Its clip by the global norm would hide a factor on the gradient.
        max_grad_norm=None,
        always_adapt=True,
    )
    return made


def _timm() -> Any:
    # timm imports torchvision, which may need help, and takes seconds.
    import hpclbfl.vision  # noqa: F401

    # isort: split
    import timm.optim

    return timm.optim


_OPTIMIZERS: dict[str, Callable[[Groups, OptimizerConfig], torch.optim.Optimizer]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
    "lars": _lars,
    "lamb": _lamb,
}
