"""Partitions: how the training set is divided among the clients; one file each.

Each is called with its config, the labels (int64 [N]), the number of clients C, the number of classes and a random
generator. It returns C arrays of indices into the training split: disjoint, together complete, each in rising order. A
partition of the user's own may return them in any order, as whole numbers of any kind. One whose config has
`deals_by = "groups"` gets the samples' groups and their number in the place of labels and classes; one with
`deals_by = "samples"` also serves data without labels, and gets zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpclbfl.config.components import PARTITIONS
from hpclbfl.config.part_names import brief
from hpclbfl.config.sections import PartitionConfig
from hpclbfl.core.errors import ConfigError
from hpclbfl.data.samples import Samples

IntArray = NDArray[np.int64]
Shards = list[IntArray]

_PARTITION_STREAM = 3


def partition(config: PartitionConfig, split: Samples, num_clients: int, num_classes: int, seed: int) -> Shards:
    """The shards of a training split that a job's `partition` section asks for; a function of its arguments alone.

    Raises:
        ConfigError: more clients than samples, or a partition that these data cannot have.
    """
    count = len(split)
    check_clients(num_clients, count)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(_PARTITION_STREAM,))))
    marks, num_kinds = split.labels, num_classes
    if config.deals_by == "groups":
        marks = split.groups
        num_kinds = 0 if marks is None else len(np.unique(marks))
    if marks is None and config.deals_by != "samples":
        raise ConfigError(f"partition.kind: {brief(config.kind)} deals by {config.deals_by}, these samples have none")
    made = PARTITIONS.make(config, np.zeros(count, np.int64) if marks is None else marks, num_clients, num_kinds, rng)
    return checked(made, num_clients, count, config.title)


def checked(made: Any, num_clients: int, num_samples: int, title: str) -> Shards:
    """What a partition gave as shards, each in rising order, if every sample is in exactly one.

    Raises:
        ConfigError: it is not; says what is wrong.
    """
    try:
        shards = [np.asarray(shard) for shard in made]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"partition {title}: gives {type(made).__name__}, not an array for each client") from error
    if len(shards) != num_clients:
        raise ConfigError(f"partition {title}: gives {len(shards)} shards for {num_clients} clients")
    for client, shard in enumerate(shards):
        if shard.ndim != 1 or (shard.size and not np.issubdtype(shard.dtype, np.integer)):
            raise ConfigError(f"partition {title}: client {client}'s shard is no list of whole numbers")
    found = [np.sort(shard.astype(np.int64)) for shard in shards]
    every = np.sort(np.concatenate(found))
    if not np.array_equal(every, np.arange(num_samples)):
        outside = every[(every < 0) | (every >= num_samples)]
        twice = every[1:][np.diff(every) == 0]
        if len(outside):
            wrong = f"sample {outside[0]} is none of the {num_samples}, 0 the first"
        elif len(twice):
            wrong = f"sample {twice[0]} is in it twice"
        else:
            wrong = f"sample {np.setdiff1d(np.arange(num_samples), every)[0]} is in no shard"
        raise ConfigError(f"partition {title}: does not give every sample to one client: {wrong}")
    return found


def check_clients(num_clients: int, num_samples: int) -> None:
    """Refuse more clients than samples. Raises ConfigError."""
    if num_samples < num_clients:
        raise ConfigError(f"clients: {num_clients} clients, but only {num_samples} training samples to share")


def cuts(proportions: np.ndarray[Any, Any], total: int) -> IntArray:
    """Where to cut `total` items into shares of these proportions: int64 [C - 1], rising."""
    rounded = np.rint(np.cumsum(proportions)[:-1] * total).astype(np.int64)
    found: IntArray = np.minimum(rounded, total)
    return found


def joined(pieces: list[list[IntArray]]) -> Shards:
    """Each client's pieces as one shard."""
    return [np.sort(np.concatenate(own)) if own else np.empty(0, np.int64) for own in pieces]
