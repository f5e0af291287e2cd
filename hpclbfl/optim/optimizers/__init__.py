"""Optimizers: torch's SGD, Adam and AdamW in their fused form, timm's LARS and LAMB; one file each.

Each is created from its config and the parameter groups. Normalisation parameters and biases are excluded from weight
decay and trust ratio unless the job says `decay: all`. Excluding them from the decay is common in large-batch SGD: P.
Goyal et al., arXiv 1706.02677 (normalisation parameters), X. Jia et al., arXiv 1807.11205 (also biases).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hpclbfl.config.components import OPTIMIZERS
from hpclbfl.config.sections import OptimizerConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

Groups = list[dict[str, Any]]
"""torch's parameter groups: the parameters, and the options that differ from the optimizer's."""


def make_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer with its initial state; it has two parameter groups if only weights decay, else one."""
    from hpclbfl.optim.slots import reset_slots

    made: torch.optim.Optimizer = OPTIMIZERS.make(config, parameter_groups(config, parameters))
    reset_slots(made)
    return made


def parameter_groups(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> Groups:
    """Weights, then the parameters without decay and trust ratio (fewer than 2 dimensions); without empty groups."""
    everything = list(parameters)
    if config.decay == "all":
        return [{"params": everything}]
    exempt: dict[str, Any] = {"weight_decay": 0.0}
    if config.adapts_layers:
        exempt["always_adapt"] = False
    weights = [p for p in everything if p.ndim >= 2]
    others = [p for p in everything if p.ndim < 2]
    groups: Groups = [{"params": weights}, {"params": others, **exempt}]
    return [group for group in groups if group["params"]]
