"""The clients of a rank: a net each, and its passes over batches."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hpclbfl.algorithms.flat_model import FlatModel
from hpclbfl.algorithms.rank import Rank
from hpclbfl.algorithms.record import ClientRecord, StepRecord
from hpclbfl.algorithms.terms import ClientBatch
from hpclbfl.core.fitting import check_like
from hpclbfl.core.seeding import seed_generators
from hpclbfl.gradients.sample_noise import sample_factors


class Client:
    """A federated participant on this rank; a `hpclbfl.core.state.Stateful`.

    Attributes:
        id: its number among all clients of the job.
        replica: its net: parameters of its own (local training) or shared by all clients of the rank.
        loss_scaler: the shared model's, or the client's own.
    """

    def __init__(self, client_id: int, replica: FlatModel, loss_scaler: torch.amp.GradScaler) -> None:
        self.id, self.replica, self.loss_scaler = client_id, replica, loss_scaler

    def forward_backward(self, rank: Rank, record: StepRecord, divisor: float, batch: ClientBatch | None) -> None:
        """Add the gradient of sum(losses) / divisor to the parameters of its net; nothing without a batch."""
        clock, step = rank.clock, rank.counters.step
        begin, host_begin = clock.mark(), time.perf_counter()
        if batch is None:
            record.clients.append(ClientRecord(self.id, 0, (begin, begin), (begin, begin)))
            return
        seed_generators(rank.job.seed, self.id, step)
        with rank.autocast():
            losses, told = self._losses(rank, batch)
        self.loss_scaler.scale(losses / divisor).backward()
        if rank.emulation is not None:
            rank.emulation.stretch(step, host_begin - batch.host_s)
        columns = {"loss": told.detach() / max(1, batch.num_terms)}
        record.clients.append(ClientRecord(self.id, batch.num_samples, batch.loaded, (begin, clock.mark()), columns))

    def _losses(self, rank: Rank, batch: ClientBatch) -> tuple[Tensor, Tensor]:
        """The sum over the batch that is trained, and the one that is logged."""
        outputs, std = self.replica.module(batch.inputs), rank.job.gradients.sample_noise
        if std is None:
            losses = rank.loss(outputs, batch.targets)
            return losses, losses
        each = rank.loss.per_sample(outputs, batch.targets)
        factors = sample_factors(len(each), std, rank.job.seed, rank.counters.step, self.id)
        return (torch.from_numpy(factors).to(each) * each).sum(), each.sum()

    def state_dict(self) -> dict[str, Any]:
        """The buffers of its net."""
        return {"buffers": dict(self.replica.module.named_buffers())}

    def check_state(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        check_like(dict(self.replica.module.named_buffers()), found.get("buffers"), "buffers")

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        for name, buffer in self.replica.module.named_buffers():
            buffer.copy_(found["buffers"][name])
