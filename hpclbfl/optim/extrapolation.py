"""Extrapolated SGD: each client computes its gradient one step ahead of the shared model.

T. Lin et al., "Extrapolation for Large-batch Training in Deep Learning", ICML 2020. Client c computes g_c at
w - lr' * (its own gradient of the previous step); the reduced gradient updates w. The extrapolation smooths the loss
for large batches. It needs no additional gradient and no communication.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hpclbfl.core.errors import DataError
from hpclbfl.core.fitting import check_like


class Extrapolation:
    """Keeps each client's last gradient.

    Args:
        lr: lr', the step size of the extrapolation.

    Attributes:
        gradients: by client and parameter, the mean gradient over the client's last batch times `factors[client]`.
        factors: by client; see `ahead`.
    """

    def __init__(self, lr: float) -> None:
        self.lr = lr
        self.gradients: dict[int, dict[nn.Parameter, Tensor]] = {}
        self.factors: dict[int, float] = {}

    @contextmanager
    def ahead(self, client: int, factor: float) -> Iterator[dict[nn.Parameter, Tensor]]:
        """Inside the block, the parameters are extrapolated; add the gradients computed there to the given dict.

        Args:
            client: its number.
            factor: of the client's mean gradient in the dict (its share of the global batch).
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

    def client_state(self, client: int, parameters: list[nn.Parameter]) -> ClientState:
        """The state of a client, for checkpoints."""
        return ClientState(self, client, parameters)


class ClientState:
    """A client's last gradient; a `hpclbfl.core.state.Stateful`.

    Args:
        owner: holds the gradients of all clients.
        client: its number.
        parameters: of the model, in order.
    """

    def __init__(self, owner: Extrapolation, client: int, parameters: list[nn.Parameter]) -> None:
        self._owner, self._client, self._parameters = owner, client, parameters

    def state_dict(self) -> dict[str, Any]:
        """Its factor, and a gradient or None for each parameter; empty before its first step."""
        last = self._owner.gradients.get(self._client)
        if last is None:
            return {}
        gradients = [last.get(parameter) for parameter in self._parameters]
        return {"extrapolation": (self._owner.factors[self._client], gradients)}

    def check_state(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        if "extrapolation" not in found:
            return
        saved = found["extrapolation"]
        if not isinstance(saved, tuple) or len(saved) != 2 or not isinstance(saved[1], list):
            raise DataError("extrapolation is not a factor and a list of gradients")
        if len(saved[1]) != len(self._parameters):
            raise DataError("extrapolation is not a factor and a gradient for each parameter")
        check_like(1.0, saved[0], "extrapolation")
        for parameter, gradient in zip(self._parameters, saved[1], strict=True):
            if gradient is not None:
                check_like(parameter.data, gradient, "extrapolation")

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        if "extrapolation" in found:
            factor, gradients = found["extrapolation"]
            pairs = zip(self._parameters, gradients, strict=True)
            self._owner.gradients[self._client] = {p: g.to(p.device) for p, g in pairs if g is not None}
            self._owner.factors[self._client] = factor
