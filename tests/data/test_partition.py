from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpclbfl.config.components import PARTITIONS
from hpclbfl.core.errors import ConfigError
from hpclbfl.data.info import label_counts
from hpclbfl.data.packed import IntArray
from hpclbfl.data.partitions import partition
from tests.components import Marked, config_of

CONFIGS: list[dict[str, Any]] = [
    {"kind": "iid"},
    {"kind": "labels_per_client", "labels": 1},
    {"kind": "labels_per_client", "labels": 3},
    {"kind": "dirichlet", "alpha": 0.1},
    {"kind": "dirichlet", "alpha": 100.0},
    {"kind": "dirichlet", "alpha": 1e-4},
    {"kind": "quantity", "alpha": 0.5},
    {"kind": "quantity", "alpha": 1e-4},
]


def counts_of(of: IntArray, clients: int, classes: int, seed: int = 0, **config: Any) -> IntArray:
    return label_counts(partition(config_of(PARTITIONS, **config), Marked(of), clients, classes, seed), of, classes)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), config=st.sampled_from(CONFIGS), seed=st.integers(0, 2**32))
def test_disjoint_complete_and_seeded(data: st.DataObject, config: dict[str, Any], seed: int) -> None:
    labels = np.array(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=80)), dtype=np.int64)
    clients = data.draw(st.integers(1, min(12, len(labels))))
    shards = partition(config_of(PARTITIONS, **config), Marked(labels), clients, 5, seed)
    assert len(shards) == clients
    assert sorted(np.concatenate(shards).tolist()) == list(range(len(labels)))
    assert all(shard.dtype == np.int64 and np.all(np.diff(shard) > 0) for shard in shards)
    again = partition(config_of(PARTITIONS, **config), Marked(labels), clients, 5, seed)
    assert all(np.array_equal(a, b) for a, b in zip(shards, again, strict=True))
    sizes = [len(shard) for shard in shards]
    if config["kind"] == "iid":
        assert max(sizes) - min(sizes) <= 1
    if config["kind"] == "quantity":
        assert min(sizes) >= 1


@pytest.mark.parametrize("config", [c for c in CONFIGS if c != {"kind": "labels_per_client", "labels": 1}])
def test_seeds_differ(config: dict[str, Any]) -> None:
    labels = np.arange(300) % 3
    first, second = (partition(config_of(PARTITIONS, **config), Marked(labels), 4, 3, seed) for seed in (0, 1))
    assert not all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@settings(max_examples=100, deadline=None)
@given(classes=st.integers(1, 12), clients=st.integers(1, 15), each=st.integers(1, 12), seed=st.integers(0, 99))
def test_labels_per_client_law(classes: int, clients: int, each: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), 60))
    if each > classes:
        with pytest.raises(ConfigError, match=rf"partition.labels: {each} labels per client, but the data have"):
            counts_of(labels, clients, classes, kind="labels_per_client", labels=each)
        return
    counts = counts_of(labels, clients, classes, seed, kind="labels_per_client", labels=each)
    held = (counts > 0).sum(axis=1)
    if clients * each >= classes:
        assert (held == each).all()
        for client in range(clients):
            expected = {(client * each + place) % classes for place in range(each)}
            assert set(np.flatnonzero(counts[client])) == expected
    else:
        assert held.min() >= each and held.sum() == classes and (np.diff(held) >= 0).all()
        assert held.max() - held.min() <= 1
    for column in counts.T:  # a class is divided evenly among its holders
        assert column[column > 0].max() - column[column > 0].min() <= 1


def test_one_label_each_for_ten_clients() -> None:
    labels = np.arange(200) % 10
    counts = counts_of(labels, 10, 10, kind="labels_per_client", labels=1)
    assert np.array_equal(counts, 20 * np.eye(10, dtype=np.int64))


def test_ten_of_a_hundred_labels_each() -> None:
    labels = np.arange(1000) % 100
    counts = counts_of(labels, 10, 100, kind="labels_per_client", labels=10)
    assert [np.flatnonzero(row).tolist() for row in counts] == [list(range(10 * c, 10 * c + 10)) for c in range(10)]


def test_remainder_goes_to_the_last_client() -> None:
    labels = np.arange(505) % 101
    counts = counts_of(labels, 10, 101, kind="labels_per_client", labels=10)
    assert [np.flatnonzero(row).tolist() for row in counts][-1] == list(range(90, 101))
    assert [int((row > 0).sum()) for row in counts] == [10] * 9 + [11]


def test_a_class_is_split_where_places_outnumber_classes() -> None:
    labels = np.repeat(np.arange(3), 10)
    counts = counts_of(labels, 4, 3, kind="labels_per_client", labels=1)
    assert counts.tolist() == [[5, 0, 0], [0, 10, 0], [0, 0, 10], [5, 0, 0]]


def test_dirichlet_follows_alpha() -> None:
    labels = np.arange(20_000) % 10
    even = counts_of(labels, 10, 10, kind="dirichlet", alpha=1e5)
    assert np.abs(even - 200).max() < 10
    skewed = counts_of(labels, 10, 10, kind="dirichlet", alpha=0.05)
    assert np.median(skewed.max(axis=0) / 2000) > 0.4


def test_dirichlet_proportions_have_the_right_moments() -> None:
    # Dirichlet(alpha 1_C): mean 1 / C, variance (C - 1) / (C^2 (C alpha + 1)).
    labels = np.arange(400_000) % 2000
    shares = counts_of(labels, 4, 2000, kind="dirichlet", alpha=0.5) / 200
    assert shares.mean(axis=1) == pytest.approx([0.25] * 4, abs=0.03)
    assert shares.var(axis=1) == pytest.approx([3 / (16 * 3)] * 4, abs=0.01)


def test_more_clients_than_images() -> None:
    with pytest.raises(ConfigError, match="clients: 4 clients, but only 3 training samples"):
        partition(config_of(PARTITIONS), Marked(np.zeros(3, np.int64)), 4, 1, 0)
