"""Optimizers of one's own: one that keeps a state by itself, and one that is derived from torch's."""

from __future__ import annotations

from typing import Any

import torch

from hpclbfl.config.sections import OptimizerConfig
from hpclbfl.config.sections.base import Fraction


class Lion(torch.optim.Optimizer):
    """X. Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv 2302.06675.

    w -= lr * (sign(beta1 * m + (1 - beta1) * g) + wd * w);  m = beta2 * m + (1 - beta2) * g
    """

    class Config(OptimizerConfig):
        """`lr`, `weight_decay` and `decay` are there already."""

        betas: tuple[Fraction, Fraction] = (0.9, 0.99)

    def __init__(self, config: Config, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": config.lr, "weight_decay": config.weight_decay, "betas": config.betas})

    def reset_state(self) -> None:
        """Put the state back to that before the first step, with all of its tensors: checkpoints count on them."""
        self.state.clear()
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {"momentum": torch.zeros_like(parameter)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step; the rate is the group's, which the schedule sets before every step."""
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                momentum = self.state[parameter]["momentum"]
                update = (beta1 * momentum + (1.0 - beta1) * parameter.grad).sign_()
                parameter.mul_(1.0 - lr * group["weight_decay"]).add_(update, alpha=-lr)
                momentum.mul_(beta2).add_(parameter.grad, alpha=1.0 - beta2)


class SignSgd(torch.optim.SGD):
    """J. Bernstein et al., "signSGD", arXiv 1802.04434. Its state is that of torch's SGD: it needs no `reset_state`."""

    class Config(OptimizerConfig):
        """The keys beside those of every optimizer."""

        momentum: Fraction = 0.9

    def __init__(self, config: Config, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """torch's step with the signs of the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.sign_()
        super().step()
