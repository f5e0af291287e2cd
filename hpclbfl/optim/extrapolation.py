"""Extrapolated SGD: each client takes its gradient a step ahead of the shared model.

T. Lin et al., "Extrapolation for Large-batch Training in Deep Learning", ICML 2020. Client c computes g_c at
w - lr' * (its own gradient of the step before), and the reduced gradient moves w itself. The look ahead smooths the
loss that a large batch sees; it needs no further gradient and no communication.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Extrapolation:
    """Keeps each client's last gradient.

    Args:
        lr: lr', of the look ahead.

    Attributes:
        gradients: by client, then by parameter: the mean gradient over its last batch times `factors[client]`.
        factors: by client.
    """

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self.gradients: dict[int, dict[nn.Parameter, Tensor]] = {}
        self.factors: dict[int, float] = {}

    @contextmanager
    def ahead(self, client: int, factor: float) -> Iterator[dict[nn.Parameter, Tensor]]:
        """The parameters stand at the extrapolated point; fill the given dict with the gradients taken there.

        Args:
            factor: by which the client's mean gradient comes multiplied (its share of the global batch).
        """
        last, fresh = self.gradients.get(client, {}), dict[nn.Parameter, Tensor]()
        parameters = [p.detach() for p in last]
        before = [p.clone() for p in parameters]
        if last:
            torch._foreach_add_(parameters, list(last.values()), alpha=-self.lr / self.factors[client])
        yield fresh
        if last:
            torch._foreach_copy_(parameters, before)
        if fresh:
            self.gradients[client], self.factors[client] = fresh, factor
