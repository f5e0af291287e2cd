"""Batches of a step, and how many terms its loss is the mean of.

The gradient of B samples is sum over samples / B, whatever each client's share. A loss that counts otherwise, tokens
say, divides by their number N over all clients, which nobody knows before the batches are there: each rank loads those
of its clients, and ranks add up their counts before the first backward pass.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpclbfl.algorithms.rank import Rank
from hpclbfl.algorithms.record import StepRecord
from hpclbfl.core.clock import Mark


@dataclass(frozen=True)
class ClientBatch:
    """What a client trains on in a step."""

    inputs: Tensor
    targets: Tensor
    num_samples: int
    num_terms: int
    """Of the loss; of one that does not count, the samples."""
    loaded: tuple[Mark, Mark]
    """When loading began and ended."""
    host_s: float
    """It took the host so long, seconds."""


class StepTerms:
    """Terms of the shared model's loss in a step; making it is a collective where the loss counts them.

    Args:
        counts: [C] samples of every client.
    """

    def __init__(self, rank: Rank, record: StepRecord, counts: NDArray[np.int64]) -> None:
        self._rank, self._counts = rank, counts
        self._ahead: dict[int, ClientBatch | None] | None = None
        self.total = int(counts.sum())
        """N, over all clients; 1 where there are none."""
        if rank.loss.counts_terms:
            self._ahead = {client: load_batch(rank, client) for client in rank.client_ids}
            begin = rank.clock.mark()
            own = sum(batch.num_terms for batch in self._ahead.values() if batch is not None)
            total = torch.tensor([own], dtype=torch.float64)
            rank.comm.reduce_(total, "terms").wait()
            self.total = max(1, int(total.item()))
            record.sync.append((begin, rank.clock.mark()))

    def of(self, client: int) -> int:
        """Terms of one of this rank's clients; 1 where it has none."""
        if self._ahead is None:
            return max(1, int(self._counts[client]))
        batch = self._ahead[client]
        return 1 if batch is None else max(1, batch.num_terms)

    def batch(self, client: int) -> ClientBatch | None:
        """A client's batch; None: it has no samples."""
        return load_batch(self._rank, client) if self._ahead is None else self._ahead[client]


def load_batch(rank: Rank, client: int) -> ClientBatch | None:
    """Load a client's next batch; None: it has no samples in this step."""
    begin, host_begin = rank.clock.mark(), time.perf_counter()
    samples, passes = rank.sampler.take(client, rank.counters.positions, rank.sizes_now)
    if len(samples) == 0:
        return None
    inputs, targets = rank.train.batch(samples, passes)
    rank.prefetch_after(client)
    loaded = rank.clock.mark()
    num_terms = rank.loss.count(targets)
    return ClientBatch(inputs, targets, len(samples), num_terms, (begin, loaded), time.perf_counter() - host_begin)
