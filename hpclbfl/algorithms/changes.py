"""What local training has changed since the last averaging, compressed: clients send that instead of their models.

Client c contributes w_c (x_c - x), its change times its weight; the new mean is x + sum_c C(w_c (x_c - x) + e_c).
BatchNorm's buffers are averaged as they are. An evaluation between two averagings is of the clients' true mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from hpclbfl.algorithms.averaging import average
from hpclbfl.algorithms.flat_model import FlatModel
from hpclbfl.algorithms.local_client import LocalClient
from hpclbfl.algorithms.rank import Rank
from hpclbfl.algorithms.record import StepRecord
from hpclbfl.comm.compression import Layer, Piece, Setup
from hpclbfl.comm.compression.build import Compression
from hpclbfl.comm.wire import ring
from hpclbfl.config.sections.compression import CompressionConfig
from hpclbfl.core.fitting import check_like
from hpclbfl.gradients import Context
from hpclbfl.gradients.chain import SHARED
from hpclbfl.gradients.gradient import Gradient, Layout


class Changes:
    """See the module; a `hpclbfl.core.state.Stateful`.

    Args:
        config: the compressor.
        rank: whose clients contribute.
        mean: a net that holds what all clients begin with.
    """

    def __init__(self, config: CompressionConfig, rank: Rank, mean: FlatModel) -> None:
        self._reference = mean.state[: len(mean.state) - len(mean.buffers)].clone()
        """[P] the parameters after the last averaging; equal on all ranks."""
        self._sum = torch.zeros_like(self._reference)
        self._pieces = pieces_of(mean)
        self._layout = Layout.of(mean.module.named_parameters())
        clients = rank.clients_by_rank
        setup = Setup(rank.comm, self._sum, self._pieces, clients, rank.job.seed, rank.agree is None)
        self.compression = Compression(config, setup, self._layout)
        self.sent_bytes = 0.0
        """By this rank in the last averaging."""

    @torch.no_grad()
    def average(
        self,
        rank: Rank,
        record: StepRecord,
        clients: Sequence[LocalClient],
        weights: NDArray[Any],
        mean: FlatModel,
    ) -> None:
        """Fill the parameters and buffers of `mean`; `weights`: [C] of all clients."""
        size, reduction = len(self._reference), self.compression.reduction
        self.compression.begin(rank.counters.step)
        for client in clients:
            weight, (own, adds) = float(weights[client.id]), reduction.target(client.id)
            if not adds:
                own.zero_()
            own.add_(client.replica.state[:size], alpha=weight).sub_(self._reference, alpha=weight)
            for piece in self._pieces:
                reduction.add(client.id, piece)
        for piece in self._pieces:
            reduction.start(piece)
        norms = reduction.finish()
        torch.add(self._reference, self._sum, out=mean.state[:size])
        if len(mean.buffers):
            local = [float(weights[client.id]) for client in clients]
            average([client.replica.buffers for client in clients], local, rank.comm, "buffers", mean.buffers)
        self._reference.copy_(mean.state[:size])
        self.sent_bytes = reduction.sent_bytes + ring(mean.buffers.nbytes, rank.comm.size)
        samples, after = int(rank.counters.since_averaging.sum()), record.epoch_after
        # What has changed belongs to all steps since the last averaging.
        before = after * (1 - samples / max(1, rank.counters.num_samples))
        step, seed = rank.counters.step, rank.job.seed
        context = Context(
            *(seed, step, SHARED, before, record.lr), epoch_after=after, agree=rank.agree, batch_size=samples
        )
        record.columns |= self.compression.observe(self._change(rank), context, norms)

    def _change(self, rank: Rank) -> Gradient:
        layers = (layer for piece in self._pieces for layer in piece.layers)
        gradient = Gradient([layer.of(self._sum).view(layer.shape) for layer in layers], self._layout)
        if rank.agree is None:
            return gradient
        return Gradient(
            gradient.values, self._layout, rank.agree(gradient.sq_norm), rank.agree(gradient.layer_sq_norms)
        )

    def state_dict(self) -> dict[str, Any]:
        """See `Stateful`."""
        return {"reference": self._reference, **self.compression.state_dict()}

    def check_state(self, found: Mapping[str, Any]) -> None:
        """See `Stateful`."""
        check_like(self._reference, found.get("reference"), "reference")
        self.compression.check_state(found)

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """See `Stateful`."""
        self._reference.copy_(found["reference"])
        self.compression.load_state_dict(found)


def pieces_of(model: FlatModel) -> list[Piece]:
    """Where the parameters that are trained lie in a model's state; those that are not come between the pieces."""
    runs: list[list[Layer]] = []
    begin, index, is_open = 0, 0, False
    for parameter in model.module.parameters():
        if parameter.requires_grad:
            if not is_open:
                runs.append([])
            runs[-1].append(Layer(index, tuple(parameter.shape), begin, parameter.numel()))
            index += 1
        is_open = parameter.requires_grad
        begin += parameter.numel()
    return [Piece(number, tuple(layers)) for number, layers in enumerate(runs)]
