"""From a measured gradient to its multiplier and the log's columns, with the state that this takes, for one rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hpclbfl.gradients import Context
from hpclbfl.gradients.chain import Chain
from hpclbfl.gradients.noise_scale import NoiseScale, NoiseState
from hpclbfl.gradients.scaler import ScalerState

SHARED = -1
"""Stands for a client where the model is shared."""


class Pipeline:
    """What is measured of gradients and what multiplies them.

    Args:
        transform: its first part is a `hpclbfl.gradients.scaler.StepUpScale`, which measures the change.
        noise_scale: None where it is not asked for.
        seed: of the job.
        agree: makes a reduced gradient's norm equal on ranks whose arithmetic rounds differently; else the identity.

    Attributes:
        states: the transform's state: of the shared model at SHARED, in local training of each client of this rank.
        noise_state: of the noise scale.
    """

    def __init__(
        self, transform: Chain, noise_scale: NoiseScale | None, seed: int, agree: Callable[[Tensor], Tensor]
    ) -> None:
        self.transform, self.noise_scale = transform, noise_scale
        self.states: dict[int, tuple[Any, ...]] = {}
        self.noise_state = NoiseState()
        self._seed, self._agree = seed, agree

    def update(
        self, sq_norm: Tensor, step: int, client: int, layer_sq_norms: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Take a step's gradient, unscaled.

        Args:
            sq_norm: 0-d.
            client: SHARED for a reduced gradient.
            layer_sq_norms: [L], where the transform needs them.

        Returns:
            The multiplier (0-d; None where it is 1 in every step), and the log's columns by name.
        """
        if client == SHARED:
            sq_norm = self._agree(sq_norm)
            layer_sq_norms = self._agree(layer_sq_norms) if layer_sq_norms is not None else None
        context = Context(self._seed, step, client, layer_sq_norms)
        before = self.states.get(client) or self.transform.init()
        multiplier, after = self.transform.update(sq_norm, before, context)
        self.states[client] = after
        scaler: ScalerState = after[0]
        norm = "grad_sq_norm" if client == SHARED else "local_grad_sq_norm"
        columns = {norm: sq_norm, "grad_change": scaler.detector.change, "scale": scaler.scale}
        return None if self.transform.is_identity else multiplier, columns

    def estimate_noise(
        self, local: Tensor, grad_sq_norm: Tensor, num_clients: int, batch_size: int
    ) -> dict[str, Tensor]:
        """The noise scale's columns; see `NoiseScale.update`."""
        if self.noise_scale is None:
            return {}
        found, self.noise_state = self.noise_scale.update(
            local, grad_sq_norm, num_clients, batch_size, self.noise_state
        )
        return {
            "tr_sigma": found.tr_sigma,
            "true_grad_sq_norm": found.true_grad_sq_norm,
            "b_simple": found.b_simple,
        }
