"""Partitions: how the training set is spread over the clients; one file each.

Each is made from its config, the labels (int64 [N]), the number of clients C, the number of classes and a generator.
It gives C arrays of places in the training split: disjoint, together complete, each in rising order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpclbfl.config.components import PARTITIONS
from hpclbfl.config.sections import PartitionConfig
from hpclbfl.core.errors import ConfigError

IntArray = NDArray[np.int64]
Shards = list[IntArray]

_PARTITION_STREAM = 3


def partition(config: PartitionConfig, labels: IntArray, num_clients: int, num_classes: int, seed: int) -> Shards:
    """The shards that a job's `partition` section asks for; a function of its arguments alone.

    Raises:
        ConfigError: more clients than samples, or a law that these data cannot follow.
    """
    check_clients(num_clients, len(labels))
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(_PARTITION_STREAM,))))
    shards: Shards = PARTITIONS.make(config, labels, num_clients, num_classes, rng)
    return shards


def check_clients(num_clients: int, num_samples: int) -> None:
    """Refuse more clients than samples. Raises ConfigError."""
    if num_samples < num_clients:
        raise ConfigError(f"clients: {num_clients} clients, but only {num_samples} training images to share")


def cuts(proportions: np.ndarray[Any, Any], total: int) -> IntArray:
    """Where to cut `total` items into shares of these proportions: int64 [C - 1], rising."""
    rounded = np.rint(np.cumsum(proportions)[:-1] * total).astype(np.int64)
    found: IntArray = np.minimum(rounded, total)
    return found


def joined(pieces: list[list[IntArray]]) -> Shards:
    """Each client's pieces as one shard."""
    return [np.sort(np.concatenate(own)) if own else np.empty(0, np.int64) for own in pieces]
