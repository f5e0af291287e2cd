"""Skewed label distributions: each class is divided among the clients in proportions drawn from Dirichlet(alpha).

Yurochkin et al. 2019, "Bayesian Nonparametric Federated Learning of Neural Networks"; Hsu et al. 2019, "Measuring the
Effects of Non-Identical Data Distribution for Federated Visual Classification", draw the label distribution of each
client instead. With a small alpha few clients hold a class, and a client may get nothing.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from hpclbfl.config.components import PARTITIONS
from hpclbfl.config.sections import PartitionConfig
from hpclbfl.config.sections.base import Number
from hpclbfl.data.partitions import IntArray, Shards, cuts, joined

Concentration = Annotated[Number, Field(ge=1e-6, le=1e6)]


class DirichletConfig(PartitionConfig):
    """See the module."""

    alpha: Concentration
    """Concentration; the smaller, the more skewed."""


@PARTITIONS.register("dirichlet", DirichletConfig)
def dirichlet(
    config: DirichletConfig, labels: IntArray, num_clients: int, num_classes: int, rng: np.random.Generator
) -> Shards:
    """See the module."""
    pieces: list[list[IntArray]] = [[] for _ in range(num_clients)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        ends = cuts(rng.dirichlet(np.full(num_clients, config.alpha)), len(members))
        for client, piece in enumerate(np.split(members, ends)):
            pieces[client].append(piece)
    return joined(pieces)
