"""Partitioners: how the training set is spread over the clients.

Each takes labels (int64 [N]), the number of clients C and a generator, and returns C arrays of places in the training
split: disjoint, together complete, each in rising order.
"""

from __future__ import annotations

import numpy as np

from hpclbfl.data.packed import IntArray
from hpclbfl.errors import ConfigError
from hpclbfl.sections import PartitionConfig

_PARTITION_STREAM = 3


def iid(labels: IntArray, num_clients: int, rng: np.random.Generator) -> list[IntArray]:
    """Equal shares, to within one sample, of a random permutation."""
    return [np.sort(share) for share in np.array_split(rng.permutation(len(labels)), num_clients)]


def labels_per_client(
    labels: IntArray, num_clients: int, rng: np.random.Generator, *, labels_each: int, num_classes: int
) -> list[IntArray]:
    """Contiguous blocks of classes: client c holds classes [c L, (c + 1) L), as in the paper.

    With fewer places than classes (C L < K) the remaining classes go to the last clients, one more each, and blocks
    stay contiguous. With more places than classes the blocks wrap around, and the samples of a class are divided
    evenly, at random, among its holders.

    Raises:
        ConfigError: more labels per client than there are classes.
    """
    if labels_each > num_classes:
        raise ConfigError(f"partition.labels: {labels_each} labels per client, but the data have {num_classes} classes")
    extra, last = divmod(max(0, num_classes - num_clients * labels_each), num_clients)
    block_sizes = [labels_each + extra + (client >= num_clients - last) for client in range(num_clients)]
    holders: list[list[int]] = [[] for _ in range(num_classes)]
    place = 0
    for client, block_size in enumerate(block_sizes):
        for _ in range(block_size):
            holders[place % num_classes].append(client)
            place += 1
    pieces: list[list[IntArray]] = [[] for _ in range(num_clients)]
    for label, clients in enumerate(holders):
        members = rng.permutation(np.flatnonzero(labels == label))
        for client, piece in zip(clients, np.array_split(members, len(clients)), strict=True):
            pieces[client].append(piece)
    return _join(pieces)


def dirichlet(labels: IntArray, num_clients: int, rng: np.random.Generator, *, alpha: float) -> list[IntArray]:
    """Skewed class mixes: each class is divided over the clients in proportions drawn from Dirichlet(alpha).

    Yurochkin et al. 2019, "Bayesian Nonparametric Federated Learning of Neural Networks"; Hsu et al. 2019, "Measuring
    the Effects of Non-Identical Data Distribution for Federated Visual Classification", draw from the same law a
    class mix per client instead. Small alpha: a class lies with few clients, and a client may get nothing.
    """
    pieces: list[list[IntArray]] = [[] for _ in range(num_clients)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        cuts = _cuts(rng.dirichlet(np.full(num_clients, alpha)), len(members))
        for client, piece in enumerate(np.split(members, cuts)):
            pieces[client].append(piece)
    return _join(pieces)


def quantity(labels: IntArray, num_clients: int, rng: np.random.Generator, *, alpha: float) -> list[IntArray]:
    """Skewed sizes of i.i.d. shards: one sample each, the others in proportions drawn from Dirichlet(alpha)."""
    order = rng.permutation(len(labels))
    cuts = _cuts(rng.dirichlet(np.full(num_clients, alpha)), len(labels) - num_clients)
    return [np.sort(share) for share in np.split(order, cuts + np.arange(1, num_clients))]


def partition(
    config: PartitionConfig, labels: IntArray, num_clients: int, num_classes: int, seed: int
) -> list[IntArray]:
    """The shards that a job's `partition` section asks for; a function of its arguments alone.

    Raises:
        ConfigError: more clients than samples, or a law that these data cannot follow.
    """
    check_clients(num_clients, len(labels))
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(_PARTITION_STREAM,))))
    if config.kind == "labels_per_client" and config.labels is not None:
        return labels_per_client(labels, num_clients, rng, labels_each=config.labels, num_classes=num_classes)
    if config.kind == "dirichlet" and config.alpha is not None:
        return dirichlet(labels, num_clients, rng, alpha=config.alpha)
    if config.kind == "quantity" and config.alpha is not None:
        return quantity(labels, num_clients, rng, alpha=config.alpha)
    return iid(labels, num_clients, rng)


def check_clients(num_clients: int, num_samples: int) -> None:
    """Refuse more clients than samples. Raises ConfigError."""
    if num_samples < num_clients:
        raise ConfigError(f"clients: {num_clients} clients, but only {num_samples} training images to share")


def _cuts(proportions: np.ndarray, total: int) -> IntArray:
    """Where to cut `total` items into shares of these proportions: int64 [C - 1], rising."""
    rounded = np.rint(np.cumsum(proportions)[:-1] * total).astype(np.int64)
    cuts: IntArray = np.minimum(rounded, total)
    return cuts


def _join(pieces: list[list[IntArray]]) -> list[IntArray]:
    return [np.sort(np.concatenate(own)) if own else np.empty(0, np.int64) for own in pieces]
