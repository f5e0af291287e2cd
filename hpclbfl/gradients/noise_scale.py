"""The gradient noise scale, from norms that a synchronous step has anyway.

S. McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv 1812.06162, appendix A.1, here for unequal
batches. With n clients of b_c samples, B = sum b_c, their mean gradients g_c and G = sum (b_c / B) g_c,

    A = sum (b_c / B) |g_c|^2
    tr(Sigma) = (A - |G|^2) B / (n - 1)        covariance of one sample's gradient
    |g|^2     = (n |G|^2 - A) / (n - 1)        squared norm of the gradient without noise
    B_simple  = tr(Sigma) / |g|^2              samples

are unbiased for any b_c. A single step's estimates are noisy, and may be negative, so the ratio is taken of their
averages over steps. Shards that are not i.i.d. inflate it: clients then differ by more than their samples' noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from hpclbfl.core.fitting import check_like
from hpclbfl.core.state import checkpointed
from hpclbfl.gradients import NoiseAverages

_ZERO = torch.zeros((), dtype=torch.float64)


@checkpointed
@dataclass(frozen=True)
class NoiseState:
    """Averages over steps, not yet divided by `mass`."""

    tr_sigma: Tensor = _ZERO
    true_grad_sq_norm: Tensor = _ZERO
    mass: Tensor = _ZERO
    """Weight of the steps in the averages, 0 to 1."""


@dataclass(frozen=True)
class NoiseEstimate:
    """Of one step; 0-d, float64."""

    tr_sigma: Tensor
    true_grad_sq_norm: Tensor
    b_simple: Tensor
    """Samples; of the averages up to this step."""


class NoiseScale:
    """Estimates the noise scale, step after step.

    Args:
        decay: weight of the averages against the newest step, 0 (no averaging) to 1.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.state = NoiseState()

    def observe(self, local: Tensor, grad_sq_norm: Tensor, num_clients: int, batch_size: int) -> dict[str, Tensor]:
        """Take a step's norms, as `update` does, and return the log's columns."""
        found, self.state = self.update(local, grad_sq_norm, num_clients, batch_size, self.state)
        return {name.name: getattr(found, name.name) for name in fields(found)}

    def update(
        self, local: Tensor, grad_sq_norm: Tensor, num_clients: int, batch_size: int, state: NoiseState
    ) -> tuple[NoiseEstimate, NoiseState]:
        """A step's estimate and the averages after it.

        Args:
            local: A, 0-d.
            grad_sq_norm: |G|^2, 0-d.
            num_clients: n, those that have samples; at least 2.
            batch_size: B, samples.
        """
        tr_sigma, truth = estimate(local.double(), grad_sq_norm.double(), num_clients, batch_size)
        is_finite = torch.isfinite(tr_sigma) & torch.isfinite(truth)
        keep = torch.where(is_finite, self.decay, 1.0)
        after = NoiseState(
            *(
                keep * before.to(now.device) + (1 - keep) * torch.where(is_finite, now, 0.0)
                for before, now in (
                    (state.tr_sigma, tr_sigma),
                    (state.true_grad_sq_norm, truth),
                    (state.mass, torch.ones_like(truth)),
                )
            )
        )
        # The mass, by which each average would be divided, cancels.
        return NoiseEstimate(tr_sigma, truth, after.tr_sigma / after.true_grad_sq_norm), after

    @property
    def averages(self) -> NoiseAverages:
        """Up to the newest step."""
        state = self.state
        return NoiseAverages(state.tr_sigma / state.mass, state.tr_sigma / state.true_grad_sq_norm)

    def state_dict(self) -> dict[str, Any]:
        """See `hpclbfl.core.state.Stateful`."""
        return {"noise": self.state}

    def check_state(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        check_like(NoiseState(), found.get("noise"), "noise")

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        self.state = found["noise"]


def estimate(local: Tensor, grad_sq_norm: Tensor, num_clients: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """tr(Sigma) and |g|^2 of one step; see the module for the formulas."""
    others = num_clients - 1
    tr_sigma = (local - grad_sq_norm) * (batch_size / others)
    return tr_sigma, (num_clients * grad_sq_norm - local) / others
