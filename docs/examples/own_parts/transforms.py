"""A gradient transform of one's own: gradient centralisation, with a running mean of what it takes away.

H. Yong et al., "Gradient Centralization: A New Optimization Technique for Deep Neural Networks", ECCV 2020: of each
weight that has two dimensions or more, the mean over the inputs of every output is taken away from its gradient.
"""

from __future__ import annotations

import torch

from hpclbfl.config.sections import TransformConfig
from hpclbfl.config.sections.base import Share
from hpclbfl.gradients import Context, Metrics
from hpclbfl.gradients.gradient import Gradient, Layout


class Centralise:
    """Between the reduction and the step; named in `gradients.chain`."""

    class Config(TransformConfig):
        """The keys that a job may give beside `name`."""

        strength: Share = 1.0
        """Part of the mean that is taken away."""

    def __init__(self, config: Config) -> None:
        self.strength = config.strength

    def init(self, layout: Layout | None) -> torch.Tensor:
        """The state: a running mean of the removed part's norm. It is saved in checkpoints as it is."""
        return torch.zeros((), dtype=torch.float64)

    def update(self, gradient: Gradient, state: torch.Tensor, ctx: Context) -> tuple[Gradient, torch.Tensor, Metrics]:
        """The new gradient, the new state, and a number for the log's table `metrics`."""
        centred, removed = [], []
        for values in gradient.tensors:
            if values.ndim > 1:
                mean = self.strength * values.flatten(1).mean(1).view(-1, *[1] * (values.ndim - 1))
                removed.append(mean.double().square().sum() * values[0].numel())
                values = values - mean
            centred.append(values)
        norm = torch.stack(removed).sum().sqrt()
        running = 0.9 * state.to(norm.device) + 0.1 * norm
        return gradient.replaced(centred), running, {"removed_norm": running}
