"""Policies against simulated devices whose speed is known: step time = slow-down * (a + b * batch), with noise."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpclbfl.batching import Observation
from hpclbfl.batching.critical_phase import CriticalPhase, make_critical_phase
from hpclbfl.batching.dynamic import ControllerState, Dynamic, _lines
from hpclbfl.batching.fixed import Fixed
from hpclbfl.batching.noise_scale import NoiseScalePolicy
from hpclbfl.batching.proportional import Proportional
from hpclbfl.batching.share import even
from hpclbfl.config.job import parse_job


@dataclass
class Cluster:
    """Devices that take slow-down * (a + b * batch) seconds a step, times noise; a policy's view lags by a step."""

    slowdown: list[float]
    fixed_s: float = 0.02
    per_sample_s: float = 0.005
    noise: float = 0.02
    seed: int = 0
    seconds: list[float] = field(default_factory=list)
    plans: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)

    def times(self, sizes: tuple[int, ...]) -> np.ndarray:
        exact = np.array(self.slowdown) * (self.fixed_s + self.per_sample_s * np.array(sizes))
        return exact * np.exp(self.noise * self.rng.standard_normal(len(sizes)))

    def run(self, policy: Any, total: int, steps: int, at: dict[int, list[float]] | None = None) -> None:
        self.rng = np.random.default_rng(self.seed)
        plan, state = policy.init(even(total, len(self.slowdown)))
        sizes, pending = plan.sizes, None
        for step in range(steps):
            self.slowdown = (at or {}).get(step, self.slowdown)
            now = Observation(sizes, self.times(sizes))
            self.seconds.append(float(now.seconds.max()))
            if pending is not None:
                new, state = policy.update(pending, state)
                if new is not None:
                    assert sum(new.sizes) == total
                    sizes = new.sizes
                    self.plans.append((step, sizes))
            pending = now

    def efficiency(self, steps: slice, total: int, sizes: tuple[int, ...]) -> float:
        """Throughput against the sum of the ranks' rates, each at its batch."""
        exact = np.array(self.slowdown) * (self.fixed_s + self.per_sample_s * np.array(sizes))
        return float(total / np.median(self.seconds[steps]) / (np.array(sizes) / exact).sum())


def dynamic(ranks: int, total: int) -> Dynamic:
    return Dynamic([1] * ranks, [total] * ranks, window=5, min_gain=0.03)


@pytest.mark.parametrize("slowdown", [[1, 3], [1, 1, 2, 4]])
@pytest.mark.parametrize("seed", range(5))
def test_dynamic_converges_and_stays(slowdown: list[float], seed: int) -> None:
    cluster = Cluster([float(s) for s in slowdown], seed=seed)
    cluster.run(dynamic(len(slowdown), 256), 256, 200)
    assert 1 <= len(cluster.plans) < 3
    for steps in (slice(20, 40), slice(40, 200)):
        assert cluster.efficiency(steps, 256, cluster.plans[-1][1]) > 0.95


@pytest.mark.parametrize("seed", range(5))
def test_dynamic_follows_a_rank_that_slows_in_mid_run(seed: int) -> None:
    cluster = Cluster([1.0, 1.0, 1.0, 1.0], seed=seed)
    cluster.run(dynamic(4, 256), 256, 200, at={103: [1.0, 1.0, 1.0, 4.0]})
    assert cluster.plans[0][0] > 103, "alike ranks are left alone"
    assert cluster.plans[-1][0] <= 133
    assert cluster.efficiency(slice(135, 200), 256, cluster.plans[-1][1]) > 0.93


@pytest.mark.parametrize("seed", range(20))
def test_dynamic_leaves_equal_ranks_alone_despite_noise(seed: int) -> None:
    cluster = Cluster([1.0] * 4, noise=0.1, seed=seed)
    cluster.run(dynamic(4, 256), 256, 300)
    # Chance may move a few samples once; it must neither drift nor oscillate.
    assert len(cluster.plans) <= 1
    for _, sizes in cluster.plans:
        assert max(sizes) / min(sizes) < 1.35


def test_dynamic_ignores_useless_observations() -> None:
    policy = dynamic(2, 64)
    _, state = policy.init((32, 32))
    for seen in (Observation((16, 48), np.ones(2)), Observation((32, 32), np.array([np.nan, 1.0]))):
        assert policy.update(seen, state) == (None, state)


@given(st.lists(st.floats(1e-3, 10.0), min_size=2, max_size=5), st.integers(0, 2**32))
@settings(deadline=None, max_examples=50)
def test_dynamic_keeps_batch_and_bounds_and_is_idle_at_balance(per_sample: list[float], seed: int) -> None:
    ranks = len(per_sample)
    low, high = [4] * ranks, [40] * ranks
    policy = Dynamic(low, high, window=3, min_gain=0.03)
    plan, state = policy.init((20,) * ranks)
    sizes, rng = plan.sizes, np.random.default_rng(seed)
    changes = 0
    for _ in range(60):
        seconds = np.array(per_sample) * sizes * np.exp(0.01 * rng.standard_normal(ranks))
        new, state = policy.update(Observation(sizes, seconds), state)
        if new is not None:
            sizes, changes = new.sizes, changes + 1
            assert sum(sizes) == 20 * ranks
            assert all(lo <= n <= hi for n, lo, hi in zip(sizes, low, high, strict=True))
    assert changes <= 2


def test_warm_up_stops_after_two_changes() -> None:
    policy = Dynamic([1, 1], [256, 256], window=5, min_gain=0.01, max_changes=2)
    cluster = Cluster([1.0, 3.0], fixed_s=0.1)
    cluster.run(policy, 256, 200, at={100: [3.0, 1.0]})
    assert len(cluster.plans) == 2 and cluster.plans[-1][0] < 25
    # (0.1 + 0.005 n) = 3 (0.1 + 0.005 (256 - n)) at n = 202.
    assert abs(cluster.plans[-1][1][0] - 202) <= 4


def test_proportional_from_measured_lines() -> None:
    policy = Proportional(np.array([0.1, 0.3]), np.array([0.005, 0.015]), [1, 1], [256, 256])
    plan, state = policy.init((128, 128))
    assert plan.sizes == (202, 54)
    assert policy.update(Observation(plan.sizes, np.ones(2)), state) == (None, None)
    bounded = Proportional(np.array([0.1, 0.3]), np.array([0.005, 0.015]), [1, 1], [180, 256])
    assert bounded.init((128, 128))[0].sizes == (180, 76)


def test_fixed_is_fixed() -> None:
    plan, state = Fixed().init((3, 5))
    assert plan.sizes == (3, 5)
    assert Fixed().update(Observation((3, 5), np.array([1.0, 9.0])), state) == (None, None)


def test_batch_grows_with_the_noise_scale_at_the_ends_of_epochs() -> None:
    policy = NoiseScalePolicy(max_local=40, max_total=150)
    plan, state = policy.init((16, 16, 16, 16))
    unknown = np.full(4, np.nan)
    grown = []
    for b_simple, ends_epoch in (
        (400.0, False),
        (80.0, True),
        (np.nan, True),
        (103.0, True),
        (110.0, True),
        (1e4, True),
    ):
        new, state = policy.update(Observation(plan.sizes, unknown, b_simple, ends_epoch), state)
        grown.append(new.sizes if new is not None else None)
    # 80 and 110 are less than 1.5 times 64 and 103; 10,000 is cut at 150, not half as much again as 103.
    assert grown == [None, None, None, (26, 26, 26, 25), None, None]
    assert policy.update(Observation(plan.sizes, unknown, 1e4, True), policy.init((16,) * 4)[1])[0].sizes == (
        38,
        38,
        37,
        37,
    )


def test_the_batch_is_large_outside_critical_phases() -> None:
    policy = CriticalPhase((4, 6), (16, 20), threshold=0.5)
    plan, state = policy.init((4, 6))
    assert plan.sizes == (4, 6)
    found = []
    for change, ends_epoch in (
        (0.1, False),
        (np.nan, True),
        (0.5, True),
        (0.49, True),
        (0.2, True),
        (np.nan, True),
        (0.1, True),
        (np.inf, True),
    ):
        seen = Observation(plan.sizes, np.full(2, np.nan), ends_epoch=ends_epoch, change=change)
        new, state = policy.update(seen, state)
        found.append(None if new is None else (new.sizes, new.reason))
    assert found == [
        *(None, None, None),
        ((16, 20), "no critical phase: change 0.49"),
        None,
        ((4, 6), "critical phase: change is not known"),
        ((16, 20), "no critical phase: change 0.1"),
        ((4, 6), "critical phase: change inf"),
    ]


@pytest.mark.parametrize(
    ("keys", "sizes", "capacity", "expected"),
    [
        ({}, [4, 6], [50, 50], (16, 24)),
        ({}, [4, 6], [10, 50], (10, 24)),
        ({"max_local_batch_size": 20}, [4, 6], [50, 50], (16, 20)),
        # A client without samples keeps what it has.
        ({}, [4, 6], [0, 50], (4, 24)),
        # Dealt anew, 30 samples are those of all clients together.
        ({"reshuffle": True}, [4, 6], [30, 30], (12, 18)),
    ],
)
def test_a_large_batch_keeps_within_its_bounds(
    keys: dict[str, Any], sizes: list[int], capacity: list[int], expected: tuple[int, ...]
) -> None:
    keys = dict(keys)
    job = parse_job(
        {
            "data": {"name": "digits"},
            "model": {"name": "resnet8"},
            "partition": {"kind": "iid", "reshuffle": keys.pop("reshuffle", False)},
            "batching": {"policy": "critical_phase", "factor": 4, "local_batch_size": 5, **keys},
        },
        "a test",
    )
    policy = make_critical_phase(job.batching, job, 1, sizes, capacity)
    plan, _ = policy.update(
        Observation(tuple(sizes), np.full(1, np.nan), ends_epoch=True, change=0.0), policy.init(())[1]
    )
    assert plan is not None and plan.sizes == expected


@given(
    st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
    st.lists(st.tuples(st.tuples(*[st.integers(1, 4096)] * 2), st.tuples(*[st.floats(1e-6, 1e3)] * 2)), max_size=2),
    st.tuples(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3)),
)
def test_no_time_that_the_controller_fits_is_negative(
    sizes: tuple[int, int], history: list[Any], now: tuple[float, float]
) -> None:
    fixed_s, per_sample_s = _lines(ControllerState(sizes, history=tuple(history)), np.array(now))
    assert (fixed_s >= 0).all() and (per_sample_s > 0).all()
    np.testing.assert_allclose(fixed_s + per_sample_s * np.array(sizes), now, rtol=1e-12)
