"""The step-up function of the paper's Eq. 6: the update is scaled by X in some steps and left alone in others.

S. Tyagi, "On Using Large-Batches in Federated Learning", section III-B. The paper says which steps in two ways that
exclude each other: by Eq. 6 the factor is 1 in critical phases and X otherwise, and in the work it cites a large change
is critical; by the description of its experiments a change of at least the threshold gives X and a smaller one 1. What
it observed (a higher threshold left most steps at 1) fits the second alone. So the side is an option:

    delta_ge  X where delta >= threshold, as evaluated in the paper; the default
    delta_lt  X where delta < threshold, as Eq. 6 reads
    always    X in every step, the first one too: the control that equals a learning rate of X lr with a decay of wd / X
    never     1: the baseline
    random    X in a share `duty` of the steps, drawn from the seed: the control of equal duty

The noise of Eq. 7, (X - 1) G, is parallel to G: scaling adds no independent noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hpclbfl.core.state import checkpointed
from hpclbfl.gradients import Context
from hpclbfl.gradients.change import METRICS, ChangeState, Metric

When = Literal["delta_ge", "delta_lt", "always", "never", "random"]
_GATE_STREAM = 4
_ONE = torch.ones((), dtype=torch.float64)


@checkpointed
@dataclass(frozen=True)
class ScalerState:
    """What the next step's factor depends on, and what the last one's was."""

    detector: ChangeState = field(default_factory=ChangeState)
    scale: Tensor = _ONE
    """X or 1, of the newest step."""


@dataclass(frozen=True)
class StepUpScale:
    """A `hpclbfl.gradients.GradientTransform`.

    Where the change is not known (in the first step, or the first 25 under SelSync's), the delta gates give 1.
    """

    factor: float
    threshold: float = 0.5
    when: When = "delta_ge"
    duty: float = 1.0
    """random: share of the steps that are scaled."""
    change: Metric = "squared_norm"
    """squared_norm: Eq. 8; selsync: see `hpclbfl.gradients.change`."""

    @property
    def needs_layers(self) -> bool:
        """Whether the change is taken from the layers' norms."""
        return METRICS[self.change].needs_layers

    @property
    def is_identity(self) -> bool:
        """Whether it only measures."""
        return self.when == "never" or self.factor == 1.0

    def init(self) -> ScalerState:
        """No predecessor yet."""
        return ScalerState(METRICS[self.change].init())

    def update(self, grad_sq_norm: Tensor, state: ScalerState, ctx: Context) -> tuple[Tensor, ScalerState]:
        """X or 1, float64 0-d, and the state with this step's change."""
        detector = METRICS[self.change].observe(grad_sq_norm, ctx.layer_sq_norms, state.detector)
        factor = torch.full_like(detector.change, self.factor)
        scale = torch.where(self._fires(detector.change, ctx), factor, 1.0)
        return scale, ScalerState(detector, scale)

    def _fires(self, change: Tensor, ctx: Context) -> Tensor:
        if self.when == "delta_ge":
            return change >= self.threshold
        if self.when == "delta_lt":
            return change < self.threshold
        if self.when == "random":
            # The same draw on every rank: keyed by what all of them know.
            key = np.random.SeedSequence(ctx.seed, spawn_key=(_GATE_STREAM, ctx.client + 1, ctx.step))
            fires = bool(np.random.Generator(np.random.Philox(key)).random() < self.duty)
        else:
            fires = self.when == "always"
        return torch.full_like(change, fires, dtype=torch.bool)


def rides_on_step(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer multiplies gradients in the pass that it makes anyway: fused SGD does."""
    return isinstance(optimizer, torch.optim.SGD) and all(group.get("fused") for group in optimizer.param_groups)


def scale_gradients(optimizer: torch.optim.Optimizer, factor: Tensor, has_loss_scaler: bool) -> None:
    """Multiply the gradients of the next step by a 0-d factor.

    Where the optimizer cannot do it in its own pass, or a loss scaler uses that way itself, it costs one pass more.
    """
    rides = rides_on_step(optimizer) and not has_loss_scaler
    if not factor.is_cuda and factor.item() == 1.0:
        # Riding writes the gradients back, which costs, too.
        if rides:
            optimizer.grad_scale = None  # type: ignore[attr-defined]
        return
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    # It divides by grad_scale, a float32: exact for powers of two, to its rounding else.
    is_narrow = all(gradient.dtype != torch.float64 for gradient in gradients)
    if rides and is_narrow:
        optimizer.grad_scale = factor.reciprocal().float()  # type: ignore[attr-defined]
        return
    if gradients:
        torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))
