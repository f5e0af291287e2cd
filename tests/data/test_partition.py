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


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_natural_shards_hold_whole_groups_as_evenly_as_these_allow(data: st.DataObject) -> None:
    groups = np.array(data.draw(st.lists(st.integers(-3, 9), min_size=1, max_size=80)), dtype=np.int64)
    names, sizes = np.unique(groups, return_counts=True)
    clients = data.draw(st.integers(1, len(names)))
    shards = partition(config_of(PARTITIONS, kind="natural"), Marked(None, groups), clients, 0, 0)
    assert sorted(np.concatenate(shards).tolist()) == list(range(len(groups)))
    held = [set(groups[shard].tolist()) for shard in shards]
    assert all(held) and sum(map(len, held)) == len(names)
    assert [min(one) for one in held] == sorted(min(one) for one in held)
    counts = [len(shard) for shard in shards]
    assert max(counts) - min(counts) <= max(sizes)
    # Graham 1969: 4/3 of the least possible, which is no less than the mean and the largest group.
    if clients == len(names):
        assert [one == {name} for one, name in zip(held, names.tolist(), strict=True)] == [True] * clients


def test_natural_shards_by_hand() -> None:
    def deal(groups: list[int], clients: int) -> list[list[int]]:
        marks = Marked(None, np.array(groups, np.int64))
        shards = partition(config_of(PARTITIONS, kind="natural"), marks, clients, 0, 0)
        return [sorted(set(marks.groups[shard].tolist())) for shard in shards]

    # Sizes 4, 3, 2, 2, 1: the 4 goes first, then the 3, a 2 beside it, a 2 beside the 4, the 1 where less is.
    assert deal([0] * 3 + [1] * 4 + [2] * 2 + [3] + [4] * 2, 2) == [[0, 2, 3], [1, 4]]
    assert deal([5, 1, 1, 5, 3], 3) == [[1], [3], [5]]


@pytest.mark.parametrize(
    ("kind", "marks", "message"),
    [
        ("natural", Marked(np.zeros(4, np.int64)), "partition.kind: natural deals by groups, these samples have none"),
        (
            "natural",
            Marked(None, np.array([3, 3, 4, 4])),
            "clients: 3 clients, but the samples are of 2 groups to share",
        ),
        ("dirichlet", Marked(None, np.zeros(4)), "partition.kind: dirichlet deals by labels, these samples have none"),
    ],
)
def test_a_partition_that_these_samples_cannot_have(kind: str, marks: Marked, message: str) -> None:
    config = config_of(PARTITIONS, kind=kind, **({"alpha": 1.0} if kind == "dirichlet" else {}))
    with pytest.raises(ConfigError) as error:
        partition(config, marks, 3, 2, 0)
    assert str(error.value) == message


@pytest.mark.parametrize("config", [{"kind": "iid"}, {"kind": "quantity", "alpha": 1.0}])
def test_samples_without_classes_are_dealt_by_their_number(config: dict[str, Any]) -> None:
    shards = partition(config_of(PARTITIONS, **config), Marked(None, np.arange(9)), 3, 0, 5)
    same = partition(config_of(PARTITIONS, **config), Marked(np.arange(9) % 2), 3, 2, 5)
    assert [shard.tolist() for shard in shards] == [shard.tolist() for shard in same]
