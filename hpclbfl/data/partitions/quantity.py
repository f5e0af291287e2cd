"""I.i.d. shards of skewed sizes: one sample each, the others in proportions drawn from Dirichlet(alpha)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from hpclbfl.config.components import PARTITIONS
from hpclbfl.config.sections.partition import DealsBy, PartitionConfig
from hpclbfl.data.partitions import IntArray, Shards, cuts
from hpclbfl.data.partitions.dirichlet import Concentration


class QuantityConfig(PartitionConfig):
    """See the module."""

    alpha: Concentration
    """Concentration; the smaller, the more skewed."""

    deals_by: ClassVar[DealsBy] = "samples"


@PARTITIONS.register("quantity", QuantityConfig)
def quantity(
    config: QuantityConfig, labels: IntArray, num_clients: int, num_classes: int, rng: np.random.Generator
) -> Shards:
    """See the module."""
    order = rng.permutation(len(labels))
    ends = cuts(rng.dirichlet(np.full(num_clients, config.alpha)), len(labels) - num_clients)
    return [np.sort(share) for share in np.split(order, ends + np.arange(1, num_clients))]
