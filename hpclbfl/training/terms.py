"""Batches of a step, and how many terms its loss is the mean of.

The gradient of B samples is sum over samples / B, whatever each client's share. A loss that counts otherwise, tokens
say, divides by their number N over all clients, which nobody knows before the batches are there: each rank loads those
of its clients, and ranks add up their counts before the first backward pass.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from hpclbfl.algorithms.replicas import Client
from hpclbfl.training.state import ClientBatch, TrainState
from hpclbfl.training.steplog import StepRecord


class StepTerms:
    """Terms of the shared model's loss in a step; making it is a collective where the loss counts them.

    Batches that were loaded for it are kept in `TrainState.loaded`, where `load_batch` finds them.

    Args:
        counts: [C] samples of every client.
    """

    def __init__(self, state: TrainState, record: StepRecord, counts: NDArray[np.int64]) -> None:
        self._own = {client.id: int(counts[client.id]) for client in state.clients}
        self.total = int(counts.sum())
        """N, over all clients; of a loss that counts 1 where there are none."""
        if state.loss.counts_terms:
            batches = {client.id: load_batch(state, client) for client in state.clients}
            state.loaded = {client: batch for client, batch in batches.items() if batch is not None}
            self._own = {client: 0 if batch is None else batch.num_terms for client, batch in batches.items()}
            begin = state.clock.mark()
            self.total = max(1, sum(state.comm.allgather(sum(self._own.values()))))
            record.sync.append((begin, state.clock.mark()))

    def of(self, client: Client) -> int:
        """Terms of one of this rank's clients; 1 where it has none."""
        return max(1, self._own[client.id])


def load_batch(state: TrainState, client: Client) -> ClientBatch | None:
    """Return a client's next batch, loaded before or now; None: it has no samples in this step."""
    if client.id in state.loaded:
        return state.loaded.pop(client.id)
    begin, host_begin = state.clock.mark(), time.perf_counter()
    samples, passes = state.sampler.take(client.id, state.counters.positions, state.sizes_now)
    if len(samples) == 0:
        return None
    inputs, targets = state.train.batch(samples, passes)
    state.prefetch_after(client)
    loaded = state.clock.mark()
    num_terms = state.loss.count(targets)
    return ClientBatch(inputs, targets, len(samples), num_terms, (begin, loaded), time.perf_counter() - host_begin)
