"""A few classes per client, as in the paper (section II-A): client c holds classes [c L, (c + 1) L).

If C clients with L classes each do not cover all K classes (C L < K), the last clients get one class more each, and
blocks stay contiguous. If there are more places than classes (C L > K), blocks wrap around, and the samples of a class
are divided evenly, at random, among the clients that hold it.
"""

from __future__ import annotations

import numpy as np

from hpclbfl.config.components import PARTITIONS
from hpclbfl.config.sections import PartitionConfig
from hpclbfl.config.sections.base import PositiveInt
from hpclbfl.core.errors import ConfigError
from hpclbfl.data.partitions import IntArray, Shards, joined


class LabelsConfig(PartitionConfig):
    """See the module."""

    labels: PositiveInt
    """L, number of classes per client."""

    @property
    def title(self) -> str:
        """See `PartitionConfig`."""
        return f"{self.labels} label{'s' * (self.labels > 1)} per client"


@PARTITIONS.register("labels_per_client", LabelsConfig)
def labels_per_client(
    config: LabelsConfig, labels: IntArray, num_clients: int, num_classes: int, rng: np.random.Generator
) -> Shards:
    """See the module.

    Raises:
        ConfigError: more labels per client than there are classes.
    """
    each = config.labels
    if each > num_classes:
        raise ConfigError(f"partition.labels: {each} labels per client, but the data have {num_classes} classes")
    extra, last = divmod(max(0, num_classes - num_clients * each), num_clients)
    block_sizes = [each + extra + (client >= num_clients - last) for client in range(num_clients)]
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
    return joined(pieces)
