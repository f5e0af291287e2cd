"""Weighted means over all clients: of their models, their optimizers' states, and of counters the maximum."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpclbfl.algorithms.client import Client
from hpclbfl.algorithms.flat_model import FlatModel, weighted_sum
from hpclbfl.algorithms.local_client import LocalClient
from hpclbfl.comm.base import Communicator


def averaging_weights(
    samples: NDArray[np.int64], weights: str, shards: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """[C] weight of every client, summing to 1; zeros where nobody processed any samples.

    Args:
        samples: [C] samples that each client processed since the last averaging.
        weights: samples (n_c / sum n); shards (n_k / n of the paper by McMahan et al., whatever was processed); or
            uniform over the clients that processed any (1 / C').
        shards: [C] samples that each client owns; for `shards`.
    """
    if weights == "shards":
        if shards is None:
            raise ValueError("weights by shards need the shards' sizes")
        samples = shards if samples.any() else samples
    mass: NDArray[np.float64] = (samples > 0 if weights == "uniform" else samples).astype(np.float64)
    return mass / mass.sum() if mass.any() else mass


def largest(rows: Sequence[Tensor], name: str, comm: Communicator, like: Tensor) -> Callable[[], Tensor]:
    """Begin to take the elementwise maximum over all clients of all ranks; the same on any number of ranks.

    Args:
        rows: one flat float64 tensor per client of this rank, of `like`'s length.
        like: tells length and device.

    Returns:
        What waits for the maximum, and returns it. Other reductions may be begun before.
    """
    by_rank = torch.zeros(comm.size, len(like), dtype=torch.float64, device=like.device)
    by_rank[comm.rank] = torch.stack(list(rows)).amax(0) if rows else -torch.inf
    handle = comm.reduce_(by_rank.view(-1), name)

    def finish() -> Tensor:
        handle.wait()
        return by_rank.amax(0)

    return finish


def begin_counts(clients: Sequence[Client], mean: FlatModel, comm: Communicator) -> Callable[[], None]:
    """Begin to take the largest of the counters among the clients' buffers (see `flat_model`) into `mean`.

    Returns:
        What waits for them. Other reductions may be begun before.
    """
    counts = [client.replica.counts for client in clients]
    if not counts[0].numel():
        return lambda: None
    finish = largest(counts, "counts", comm, mean.counts)
    return lambda: mean.set_counts(finish())


def average(
    tensors: Sequence[Tensor], local_weights: Sequence[float], comm: Communicator, name: str, out: Tensor
) -> Tensor:
    """Weighted mean over all clients of all ranks, into `out`; one reduction of one flat buffer.

    Args:
        tensors: one flat tensor per client of this rank, all of `out`'s shape.
        local_weights: their weights; over all ranks they sum to 1.
    """
    weighted_sum(list(tensors), list(local_weights), out)
    comm.reduce_(out, name).wait()
    return out


def average_optimizer_states(
    clients: Sequence[LocalClient], local_weights: Sequence[float], comm: Communicator
) -> None:
    """Replace every client's momentum and the like by their weighted mean over all clients."""
    parameters = clients[0].replica.parameters
    keys = sorted(k for k, v in clients[0].optimizer.state[parameters[0]].items() if _is_slot(v, parameters[0]))
    for key in keys:
        flats = [torch.cat([c.optimizer.state[p][key].reshape(-1) for p in c.replica.parameters]) for c in clients]
        mean = average(flats, local_weights, comm, f"optimizer.{key}", torch.empty_like(flats[0]))
        for client in clients:
            begin = 0
            for parameter in client.replica.parameters:
                slot = client.optimizer.state[parameter][key]
                slot.copy_(mean[begin : begin + slot.numel()].view_as(slot))
                begin += slot.numel()


def _is_slot(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point()
