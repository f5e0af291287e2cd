"""An algorithm of one's own: FedProx, federated averaging whose clients are held back from leaving the common model.

T. Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020. Client k takes its local steps on

    h_k(w) = F_k(w) + mu / 2 |w - w_t|^2

where w_t is the model of the last averaging. The second term adds mu (w - w_t) to the gradient.
"""

from __future__ import annotations

from typing import Any

import torch

from hpclbfl.algorithms.fedavg import FedAvgConfig, FederatedAveraging
from hpclbfl.algorithms.local_client import LocalClient
from hpclbfl.algorithms.record import StepRecord
from hpclbfl.algorithms.state import RankState
from hpclbfl.config.sections.base import NonNegativeFloat


class FedProx(FederatedAveraging):
    """What it does besides federated averaging."""

    class Config(FedAvgConfig):
        """The keys of `fedavg`, and one more."""

        mu: NonNegativeFloat = 0.01
        """Weight of the proximal term; 0 is federated averaging."""

    def __init__(self, config: Config, global_batch_size: int, num_train: int) -> None:
        super().__init__(config, global_batch_size, num_train)
        self.mu = config.mu
        self.common: list[torch.Tensor] = []
        """w_t, by parameter."""

    def start(self, state: RankState) -> None:
        """All clients begin with the same model."""
        self._keep(state)

    @torch.no_grad()
    def adjust_gradient(self, state: RankState, client: LocalClient) -> None:
        """Add that of the proximal term."""
        for parameter, common in zip(client.replica.parameters, self.common, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - common, alpha=self.mu)

    def end_of_step(self, state: RankState, record: StepRecord, flags: int) -> bool:
        """An averaging makes a new common model."""
        averaged = super().end_of_step(state, record, flags)
        if averaged:
            self._keep(state)
        return averaged

    def state_dict(self) -> dict[str, Any]:
        """A run that is killed within a round goes on with its common model."""
        return {"common": self.common}

    def load_state_dict(self, found: dict[str, Any]) -> None:
        """Types and shapes have been checked, and tensors are where the old ones were."""
        self.common = found["common"]

    def _keep(self, state: RankState) -> None:
        # A copy: evaluations between two averagings use the same net.
        self.common = [parameter.detach().clone() for parameter in state.mean.parameters]
