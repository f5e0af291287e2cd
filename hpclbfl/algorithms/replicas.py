"""Models of which every client trains its own, until an averaging."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hpclbfl.algorithms.averaging import average, average_optimizer_states, averaging_weights, begin_counts
from hpclbfl.algorithms.changes import Changes
from hpclbfl.algorithms.flat_model import FlatModel
from hpclbfl.algorithms.lessons import asking, teach
from hpclbfl.algorithms.local_client import LocalClient
from hpclbfl.algorithms.rank import Rank
from hpclbfl.comm.wire import ring
from hpclbfl.core.errors import DataError
from hpclbfl.core.state import Stateful
from hpclbfl.gradients import Context
from hpclbfl.gradients.chain import SHARED
from hpclbfl.gradients.gradient import Gradient
from hpclbfl.optim.slots import reset_slots

if TYPE_CHECKING:
    from hpclbfl.algorithms.record import StepRecord
    from hpclbfl.algorithms.shared_model import SharedModel


class Replicas:
    """See the module; a `hpclbfl.core.state.Stateful`, its clients are others.

    Args:
        mean: a net for the clients' (virtual) average, which is what is evaluated.
        clients: of this rank.
        changes: averages what they have changed, compressed; None: their models are averaged.
    """

    def __init__(self, mean: FlatModel, clients: list[LocalClient], changes: Changes | None = None) -> None:
        self.mean, self.clients, self.changes = mean, clients, changes

    @classmethod
    def of_shared(
        cls,
        shared: SharedModel,
        make_client: Callable[[int, nn.Module], LocalClient],
        make_changes: Callable[[FlatModel], Changes | None],
    ) -> Replicas:
        """A copy of a shared model, of its optimizer and of its loss scaling for every client."""
        clients = [make_client(client.id, client.replica.module) for client in shared.clients]
        for client in clients:
            # torch would share the tensors of the state that it loads.
            client.stepper.load_state_dict(copy.deepcopy(shared.stepper.state_dict()))
        return cls(shared.mean, clients, make_changes(shared.mean))

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """One of each client."""
        return [client.optimizer for client in self.clients]

    @property
    def message_bytes(self) -> int:
        """Of an averaging, without compression."""
        return self.mean.state.nbytes

    def asking(self, rank: Rank, record: StepRecord) -> list[int]:
        """Transforms that learn from the coming step, see `lessons`; only where all clients are at the same weights."""
        chains = [client.chain for client in self.clients if client.chain is not None]
        if not chains or not chains[0].learners or rank.counters.since_averaging.any():
            return []
        begin = rank.clock.mark()
        found = asking(chains, rank.counters.step, rank.comm.vote)
        record.sync.append((begin, rank.clock.mark()))
        return found

    def teach(self, rank: Rank, record: StepRecord, places: list[int]) -> None:
        """Let transforms learn from the gradients that all clients hold; a collective."""
        begin = rank.clock.mark()
        chains = [client.chain for client in self.clients if client.chain is not None]
        counts, layout = rank.counts_now, chains[0].layout
        if layout is None:
            raise RuntimeError("a client's chain does not know its parameters")
        own = {client.id: client.gradients for client in self.clients if client.has_gradient}
        mean = torch.zeros(layout.size, dtype=layout.dtype, device=layout.device)
        for client, gradients in own.items():
            for at, gradient in zip(layout.slices, gradients, strict=True):
                if gradient is not None:
                    mean[at].add_(gradient.reshape(-1), alpha=float(counts[client] / counts.sum()))
        rank.comm.reduce_(mean, "lesson.mean").wait()
        context = Context(
            *(rank.job.seed, rank.counters.step, SHARED, record.epoch, record.lr),
            epoch_after=record.epoch_after,
            batch_size=int(counts.sum()),
        )
        record.columns |= teach(places, chains, rank.comm, own, counts, Gradient(mean, layout), context)
        record.sync.append((begin, rank.clock.mark()))

    def average(self, rank: Rank) -> NDArray[np.float64]:
        """Fill `mean` with the clients' average, parameters and buffers, weighted as the job says: [C] the weights.

        The weights are zeros where there was nothing to average.
        """
        finish_counts = begin_counts(self.clients, self.mean, rank.comm)
        weights = self._weights(rank)
        states = [client.replica.state for client in self.clients]
        if weights.any():
            average(states, [weights[c.id] for c in self.clients], rank.comm, "state", self.mean.state)
        else:
            # Just averaged: all clients hold the same model.
            self.mean.state.copy_(states[0])
        finish_counts()
        return weights

    def average_clients(self, rank: Rank, record: StepRecord) -> None:
        """Give every client the weighted mean of all; what becomes of momentum is the job's choice."""
        begin = rank.clock.mark()
        weights, sent_bytes = self._exchange(rank, record)
        if rank.emulation is not None:
            rank.emulation.transfer(sent_bytes)
        counts = self.mean.counts
        for client in self.clients:
            client.replica.state.copy_(self.mean.state)
            client.replica.set_counts(counts)
        kept = rank.job.sync.optimizer_state_after
        if kept == "average":
            average_optimizer_states(self.clients, [weights[c.id] for c in self.clients], rank.comm)
        elif kept == "reset":
            for client in self.clients:
                reset_slots(client.optimizer)
        rank.counters.averaged_at = rank.counters.positions.copy()
        record.sync.append((begin, rank.clock.mark()))

    def _exchange(self, rank: Rank, record: StepRecord) -> tuple[NDArray[np.float64], float]:
        """Fill `mean` at an averaging: [C] the weights, and the bytes that this rank has sent."""
        if self.changes is None:
            return self.average(rank), ring(self.mean.state.nbytes, rank.comm.size)
        finish_counts = begin_counts(self.clients, self.mean, rank.comm)
        weights = self._weights(rank)
        self.changes.average(rank, record, self.clients, weights, self.mean)
        finish_counts()
        return weights, self.changes.sent_bytes

    def _weights(self, rank: Rank) -> NDArray[np.float64]:
        """[C] of the clients in an averaging, as the job says."""
        return averaging_weights(rank.counters.since_averaging, rank.job.sync.averaged_by, rank.sampler.capacity)

    def parts_of(self, client: LocalClient) -> list[Stateful]:
        """What is to be remembered of a client of this rank."""
        return [client] if self.changes is None else [client, self.changes.compression.client_state(client.id)]

    def close(self) -> None:
        """Nothing to leave."""

    def state_dict(self) -> dict[str, Any]:
        """That there is no shared model; see `hpclbfl.core.state.Stateful`."""
        return {"model": None} | (self.changes.state_dict() if self.changes is not None else {})

    def check_state(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        if found.get("model") is not None:
            raise DataError("model is there, but this job's clients train alone")
        if self.changes is not None:
            self.changes.check_state(found)

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        if self.changes is not None:
            self.changes.load_state_dict(found)
