"""Which samples each client processes at each step.

Samplers are pure functions of the seed and of how many samples each client has taken so far, so every rank computes
the same answer, a checkpoint needs the positions alone, and batch sizes may change at any step. No step holds more
samples of a client than its shard has, nor more than the training set has together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from hpclbfl.config.sections import PartitionConfig
from hpclbfl.core.errors import ConfigError
from hpclbfl.data.packed import IntArray
from hpclbfl.data.partitions import check_clients, partition
from hpclbfl.data.samples import Samples

_GLOBAL_STREAM, _SHARD_STREAM = 1, 2


class Sampler(Protocol):
    """Deals out samples to clients."""

    capacity: IntArray
    """Most samples that a step can hold of each client, whatever the others take: int64 [C]."""

    def counts(self, sizes: Sequence[int]) -> IntArray:
        """Samples that each client processes in a step with local batch sizes `sizes`: int64 [C]."""

    def take(self, client: int, positions: IntArray, sizes: Sequence[int]) -> tuple[IntArray, IntArray]:
        """A client's next batch.

        Args:
            client: its number.
            positions: samples that each client has taken so far, int64 [C].
            sizes: b_c of every client in this step.

        Returns:
            The samples (places in the training split) and the pass that each belongs to, int64 [b] both.
        """


class _Stream:
    """An endless stream: the indices shuffled anew for every pass."""

    def __init__(self, indices: IntArray, seed: int, key: tuple[int, ...]) -> None:
        self._indices, self._seed, self._key = indices, seed, key
        self._recent: dict[int, IntArray] = {}

    def _shuffled(self, number: int) -> IntArray:
        if number not in self._recent:
            sequence = np.random.SeedSequence(self._seed, spawn_key=(*self._key, number))
            shuffled = np.random.Generator(np.random.Philox(sequence)).permutation(self._indices)
            # Two passes are alive at once where a batch straddles their boundary.
            newest = next(reversed(self._recent), None)
            kept = {} if newest is None else {newest: self._recent[newest]}
            self._recent = {**kept, number: shuffled}
        return self._recent[number]

    def slice(self, begin: int, count: int) -> tuple[IntArray, IntArray]:
        """Elements [begin, begin + count) and the pass of each, int64 [count] both."""
        length = len(self._indices)
        samples, passes = np.empty(count, np.int64), np.empty(count, np.int64)
        done = 0
        while done < count:
            number, offset = divmod(begin + done, length)
            piece = min(count - done, length - offset)
            samples[done : done + piece] = self._shuffled(number)[offset : offset + piece]
            passes[done : done + piece] = number
            done += piece
        return samples, passes


class GlobalSampler:
    """Data-parallel: each step takes its slices, client after client, of one permutation of the whole set per epoch.

    A batch may straddle two epochs: global batches keep their size, and every sample still occurs once per epoch.

    Args:
        num_samples: N, size of the training set.
        num_clients: C.
        seed: of the permutations.
        most: samples that a step can hold; None: N.
    """

    def __init__(self, num_samples: int, num_clients: int, seed: int, most: int | None = None) -> None:
        self._stream = _Stream(np.arange(num_samples, dtype=np.int64), seed, (_GLOBAL_STREAM,))
        self._most = num_samples if most is None else most
        self.capacity = np.full(num_clients, self._most, np.int64)

    def counts(self, sizes: Sequence[int]) -> IntArray:
        """`sizes`; where they are more than a step can hold, the largest are cut to one size."""
        return level(sizes, self._most)

    def take(self, client: int, positions: IntArray, sizes: Sequence[int]) -> tuple[IntArray, IntArray]:
        """The slice after those of the clients before; see `Sampler`."""
        counts = self.counts(sizes)
        return self._stream.slice(int(positions.sum() + counts[:client].sum()), int(counts[client]))


class ShardSampler:
    """Federated: each client cycles through its own shard, shuffled anew for every pass."""

    def __init__(self, shards: Sequence[IntArray], seed: int) -> None:
        self._streams = [_Stream(shard, seed, (_SHARD_STREAM, client)) for client, shard in enumerate(shards)]
        self.capacity = np.array([len(shard) for shard in shards], np.int64)

    def counts(self, sizes: Sequence[int]) -> IntArray:
        """`sizes`, each at most the client's shard."""
        return np.minimum(np.asarray(sizes, dtype=np.int64), self.capacity)

    def take(self, client: int, positions: IntArray, sizes: Sequence[int]) -> tuple[IntArray, IntArray]:
        """The next slice of the client's own stream; see `Sampler`."""
        count = min(sizes[client], int(self.capacity[client]))
        return self._streams[client].slice(int(positions[client]), count)


def level(sizes: Sequence[int], total: int) -> IntArray:
    """Sizes that sum up to `total` at most, int64 [C]: the largest are cut to one size, to within one sample."""
    wanted = np.asarray(sizes, dtype=np.int64)
    if wanted.sum() <= total:
        return wanted
    low, high = 0, int(wanted.max())
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if np.minimum(wanted, middle).sum() <= total else (low, middle)
    found = np.minimum(wanted, low)
    found[np.flatnonzero(wanted > low)[: total - found.sum()]] += 1
    return found


def make_sampler(config: PartitionConfig, split: Samples, num_clients: int, num_classes: int, seed: int) -> Sampler:
    """The sampler of a training split that a job's partition asks for.

    Raises:
        ConfigError: the partition cannot be made.
    """
    if len(split) == 0:
        raise ConfigError("data: the training split is empty, nothing to sample")
    if config.is_reshuffled:
        check_clients(num_clients, len(split))
        return GlobalSampler(len(split), num_clients, seed)
    return ShardSampler(partition(config, split, num_clients, num_classes, seed), seed)
