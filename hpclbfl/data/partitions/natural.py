"""Shards as the data came: a sample goes to the client that has its group, the speaker or the hospital that it is of.

Where there are more groups than clients, whole groups share a client: the largest first, each to the client with the
fewest samples so far (Graham 1969, "Bounds on Multiprocessing Timing Anomalies": the largest shard is at most 4/3 of
the least possible). Clients are numbered by the lowest group that they hold.
"""

from __future__ import annotations

import heapq
from typing import ClassVar

import numpy as np

from hpclbfl.config.components import PARTITIONS
from hpclbfl.config.sections.partition import DealsBy, PartitionConfig
from hpclbfl.core.errors import ConfigError
from hpclbfl.data.partitions import IntArray, Shards


class NaturalConfig(PartitionConfig):
    """See the module."""

    deals_by: ClassVar[DealsBy] = "groups"


@PARTITIONS.register("natural", NaturalConfig)
def natural(
    config: NaturalConfig, groups: IntArray, num_clients: int, num_groups: int, rng: np.random.Generator
) -> Shards:
    """See the module.

    Raises:
        ConfigError: fewer groups than clients.
    """
    if num_groups < num_clients:
        raise ConfigError(f"clients: {num_clients} clients, but the samples are of {num_groups} groups to share")
    _, numbers = np.unique(groups, return_inverse=True)
    sizes = np.bincount(numbers)
    # Samples so far and the client: equal ones by its number.
    clients = [(0, client) for client in range(num_clients)]
    owner = np.empty(num_groups, np.int64)
    for group in np.argsort(-sizes, kind="stable").tolist():
        held, client = heapq.heappop(clients)
        owner[group] = client
        heapq.heappush(clients, (held + int(sizes[group]), client))
    _, first_groups = np.unique(owner, return_index=True)
    order = np.argsort(first_groups)
    return [np.flatnonzero(owner[numbers] == client) for client in order]
