"""A partition of one's own: shards whose sizes fall by a constant ratio, each i.i.d."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hpclbfl.config.sections import PartitionConfig
from hpclbfl.config.sections.base import Number


class Geometric:
    """Client k owns a share in proportion to `ratio` to the power of k, one sample at least."""

    class Config(PartitionConfig):
        """The keys that a job may give beside `kind`."""

        ratio: Annotated[Number, Field(gt=0.0, le=1.0)] = 0.5
        """Of a shard's size to that of the client before."""

    def __init__(self, config: Config) -> None:
        self.ratio = config.ratio

    def __call__(
        self, labels: NDArray[np.int64], num_clients: int, num_classes: int, generator: np.random.Generator
    ) -> list[NDArray[np.int64]]:
        """The places of each client's samples. All that is random comes from the generator, so that ranks agree."""
        order = generator.permutation(len(labels))
        shares = self.ratio ** np.arange(num_clients)
        spare = len(labels) - num_clients
        cuts = np.floor(np.cumsum(shares / shares.sum())[:-1] * spare).astype(np.int64)
        return np.split(order, cuts + np.arange(1, num_clients))
