from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpclbfl.config.components import PARTITIONS
from hpclbfl.core.errors import ConfigError
from hpclbfl.data.partitions import partition
from hpclbfl.data.sampling import GlobalSampler, Sampler, ShardSampler, level, make_sampler
from tests.components import Marked, config_of

SIZES = st.lists(st.lists(st.integers(1, 9), min_size=3, max_size=3), min_size=1, max_size=25)


def run(sampler: Sampler, steps: list[list[int]]) -> list[list[tuple[int, int]]]:
    """Each client's stream of (sample, pass)."""
    positions = np.zeros(len(steps[0]), np.int64)
    streams: list[list[tuple[int, int]]] = [[] for _ in steps[0]]
    for sizes in steps:
        counts = sampler.counts(sizes)
        for client in range(len(sizes)):
            samples, passes = sampler.take(client, positions, sizes)
            assert samples.dtype == passes.dtype == np.int64
            assert len(samples) == len(passes) == counts[client]
            streams[client] += zip(samples.tolist(), passes.tolist(), strict=True)
        positions = positions + counts
    return streams


@settings(max_examples=150, deadline=None)
@given(num_samples=st.integers(1, 40), seed=st.integers(0, 2**40), steps=SIZES)
def test_reshuffled_every_sample_is_taken_once_per_epoch(num_samples: int, seed: int, steps: list[list[int]]) -> None:
    sampler = GlobalSampler(num_samples, 3, seed)
    taken = [pair for stream in run(sampler, steps) for pair in stream]
    total = sum(min(num_samples, sum(sizes)) for sizes in steps)
    for epoch in range(total // num_samples):
        assert sorted(s for s, e in taken if e == epoch) == list(range(num_samples))
    rest = [s for s, e in taken if e == total // num_samples]
    assert len(rest) == total % num_samples == len(set(rest))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 99), steps=SIZES, lengths=st.lists(st.integers(0, 12), min_size=3, max_size=3))
def test_shards_are_cycled_once_per_pass(seed: int, steps: list[list[int]], lengths: list[int]) -> None:
    ends = np.cumsum(lengths)
    shards = [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    sampler = ShardSampler(shards, seed)
    streams = run(sampler, steps)
    for client, shard in enumerate(shards):
        if not len(shard):
            assert streams[client] == [] and sampler.counts(steps[0])[client] == 0
            continue
        total = sum(min(len(shard), sizes[client]) for sizes in steps)
        assert len(streams[client]) == total
        for number in range(total // len(shard)):
            assert sorted(s for s, p in streams[client] if p == number) == shard.tolist()


@settings(max_examples=50, deadline=None)
@given(steps=SIZES)
def test_global_batches_do_not_depend_on_how_they_are_split(steps: list[list[int]]) -> None:
    # Ranks ask for their own clients alone: what a client gets follows from the positions, not from earlier calls.
    sampler = GlobalSampler(27, 3, seed=3)
    streams = run(sampler, steps)
    whole = run(GlobalSampler(27, 1, seed=3, most=10**6), [[sum(map(sum, steps))]])[0]
    merged: list[tuple[int, int]] = []
    taken = [0, 0, 0]
    for sizes in steps:
        for client, size in enumerate(sizes):
            merged += streams[client][taken[client] : taken[client] + size]
            taken[client] += size
    assert merged == whole


def test_pure_in_seed_and_position() -> None:
    sampler, other = GlobalSampler(50, 2, 7), GlobalSampler(50, 2, 7)
    late = np.array([220, 31])
    expected = sampler.take(1, late, [4, 6])
    other.take(0, np.array([0, 0]), [4, 6])
    assert all(np.array_equal(a, b) for a, b in zip(expected, other.take(1, late, [4, 6]), strict=True))
    assert not np.array_equal(expected[0], GlobalSampler(50, 2, 8).take(1, late, [4, 6])[0])


def test_epochs_and_clients_are_shuffled_differently() -> None:
    first, _ = GlobalSampler(100, 1, 0, most=200).take(0, np.array([0]), [200])
    assert not np.array_equal(first[:100], first[100:])
    shards = ShardSampler([np.arange(100), np.arange(100)], 0)
    zero = np.array([0, 0])
    assert not np.array_equal(shards.take(0, zero, [100, 100])[0], shards.take(1, zero, [100, 100])[0])


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"kind": "labels_per_client", "labels": 2},
        {"kind": "dirichlet", "alpha": 0.5},
        {"kind": "quantity", "alpha": 1},
    ],
)
def test_shards_never_change_hands(config: dict[str, Any]) -> None:
    """Invariant 8: over five passes each client sees its own shard alone, whole, once per pass, in another order."""
    labels = np.arange(63) % 7
    wanted = config_of(PARTITIONS, **config)
    shards = partition(wanted, Marked(labels), 4, 7, 3)
    streams = run(make_sampler(wanted, Marked(labels), 4, 7, 3), [[5, 5, 5, 5]] * 60)
    assert sorted(sample for shard in shards for sample in shard.tolist()) == list(range(63))
    for shard, stream in zip(shards, streams, strict=True):
        passes = [[s for s, p in stream if p == number] for number in range(5)]
        assert all(sorted(samples) == shard.tolist() for samples in passes[:-1])
        assert len(shard) < 5 or passes[0] != passes[1]
    if not config:
        assert sorted(map(len, shards)) == [15, 16, 16, 16]


def test_only_reshuffled_samples_change_hands() -> None:
    labels = np.arange(60) % 6
    dealt = make_sampler(config_of(PARTITIONS, reshuffle=True), Marked(labels), 3, 6, 0)
    assert isinstance(dealt, GlobalSampler)
    streams = run(dealt, [[5, 5, 5]] * 8)
    first, second = ({s for s, epoch in streams[0] if epoch == number} for number in range(2))
    assert len(first) == len(second) == 20 and first != second


def test_make_sampler_follows_the_partition() -> None:
    labels = np.arange(60) % 6
    config = config_of(PARTITIONS, kind="labels_per_client", labels=2)
    sampler = make_sampler(config, Marked(labels), 3, 6, 0)
    samples, passes = sampler.take(1, np.zeros(3, np.int64), [20, 20, 20])
    assert sorted(samples.tolist()) == partition(config, Marked(labels), 3, 6, 0)[1].tolist()
    assert set(labels[samples]) == {2, 3} and set(passes) == {0}


@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=8), total=st.integers(0, 200))
def test_level_cuts_the_largest_alone(sizes: list[int], total: int) -> None:
    found = level(sizes, total).tolist()
    assert sum(found) == min(sum(sizes), total)
    cut = [(n, size) for n, size in zip(found, sizes, strict=True) if n < size]
    top = max(found, default=0)
    assert all(n >= top - 1 for n, _ in cut) and all(n <= size for n, size in zip(found, sizes, strict=True))


def test_a_step_holds_no_sample_twice() -> None:
    for sampler in (GlobalSampler(10, 3, 0), ShardSampler([np.arange(3), np.arange(3, 10), np.arange(0)], 0)):
        counts = sampler.counts([8, 8, 8])
        taken = np.concatenate([sampler.take(c, np.zeros(3, np.int64), [8, 8, 8])[0] for c in range(3)])
        assert sorted(taken.tolist()) == list(range(10)) and counts.sum() == 10
    assert GlobalSampler(10, 3, 0).counts([8, 8, 8]).tolist() == [4, 3, 3]
    assert sampler.counts([8, 8, 8]).tolist() == [3, 7, 0]


def test_more_clients_than_images() -> None:
    with pytest.raises(ConfigError, match=r"^clients: 5 clients, but only 4 training samples to share$"):
        make_sampler(config_of(PARTITIONS), Marked(np.zeros(4, np.int64)), 5, 1, 0)


def test_empty_training_split() -> None:
    with pytest.raises(ConfigError, match="training split is empty"):
        make_sampler(config_of(PARTITIONS), Marked(np.zeros(0, np.int64)), 1, 1, 0)
