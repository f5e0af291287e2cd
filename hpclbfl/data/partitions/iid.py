"""Independent and identically distributed: every client gets an equal part of the training set, drawn at random."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import StrictBool

from hpclbfl.config.components import PARTITIONS
from hpclbfl.config.sections.partition import DealsBy, PartitionConfig
from hpclbfl.data.partitions import IntArray, Shards


class IidConfig(PartitionConfig):
    """See the module."""

    reshuffle: StrictBool = False
    """No fixed shards: every epoch divides all samples among the clients anew, as data-parallel training does."""

    deals_by: ClassVar[DealsBy] = "samples"

    @property
    def is_reshuffled(self) -> bool:
        """See `PartitionConfig`."""
        return self.reshuffle

    @property
    def title(self) -> str:
        """See `PartitionConfig`."""
        return "iid reshuffled" if self.reshuffle else "iid"


@PARTITIONS.register("iid", IidConfig)
def iid(config: IidConfig, labels: IntArray, num_clients: int, num_classes: int, rng: np.random.Generator) -> Shards:
    """Equal to within one sample."""
    return [np.sort(share) for share in np.array_split(rng.permutation(len(labels)), num_clients)]
