"""The largest batch, found on synthetic memory curves whose truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hpclbfl.core.errors import RunFailed
from hpclbfl.planner.memory import MARGIN, PeakProbes, Permissible, find_largest, fit_peak, is_straight

GB = 1e9


class Device:
    """A device whose peak memory is a function of the batch, and that runs out of it."""

    def __init__(self, peak: Callable[[int], float], size: float) -> None:
        self._peak, self._size = peak, size
        self.asked: list[int] = []

    def __call__(self, batch: int) -> float | None:
        self.asked.append(batch)
        peak = self._peak(batch)
        return peak if peak <= self._size else None


def search(device: Device, limit: float, top: int, most: int, most_is: str = "data") -> Permissible:
    probes = PeakProbes(device, limit)
    return find_largest(probes, fit_peak(probes, top, most), most, most_is)


def moving_peak(batch: int) -> float:
    """VGG11, about: gradients of its large layer rule the peak up to batch 500, activations from there on."""
    return max(2.0 * GB + 0.1e6 * batch, 1.2 * GB + 1.7e6 * batch)


def test_a_line_is_found_run_and_run_into() -> None:
    def peak(batch: int) -> float:
        return 0.5 * GB + 1e6 * batch

    found = search(Device(peak, 2 * GB), 2 * GB, 600, 10**6)
    assert found.peak.line.per_sample == pytest.approx(1e6)
    assert found.max_batch == pytest.approx((2 * GB * (1 - MARGIN) - 0.5 * GB) / 1e6, abs=1)
    assert found.bound == "memory"
    assert found.is_verified
    assert found.failed_batch is not None
    assert peak(found.failed_batch) > 2 * GB
    assert all(predicted == pytest.approx(peak(batch)) for batch, predicted in found.predictions.items())


def test_a_peak_that_moves_is_not_mistaken() -> None:
    # Probes at 8 and 64 lie on a line, the wrong one: it has 2.2 GB at 2048 instead of 4.7.
    device = Device(moving_peak, 5 * GB)
    found = search(device, 5 * GB, 64, 4096)
    assert found.peak.straight_from >= 256
    truth = (5 * GB * (1 - MARGIN) - 1.2 * GB) / 1.7e6
    assert found.max_batch == pytest.approx(truth, rel=0.01)
    assert found.is_verified
    assert found.peak(2048) == pytest.approx(moving_peak(2048), rel=0.01)


def test_a_peak_that_moves_between_the_probes_is_seen() -> None:
    probes = PeakProbes(Device(moving_peak, 5 * GB), 5 * GB)
    peak = fit_peak(probes, 1000, 2000)
    assert peak(1900) == pytest.approx(moving_peak(1900), rel=0.02)
    assert not is_straight({250: moving_peak(250), 500: moving_peak(500), 1000: moving_peak(1000)})


def test_memory_that_the_training_set_does_not_fill() -> None:
    found = search(Device(lambda b: 0.5 * GB + 1e6 * b, 8 * GB), 8 * GB, 4000, 960)
    assert (found.max_batch, found.bound, found.failed_batch) == (960, "data", None)
    assert found.is_verified


def test_first_probes_that_fail_are_survived() -> None:
    device = Device(lambda b: 0.5 * GB + 1e6 * b, 0.7 * GB)
    found = search(device, 0.7 * GB, 4096, 10**6)
    assert found.max_batch == pytest.approx((0.7 * GB * (1 - MARGIN) - 0.5 * GB) / 1e6, rel=0.1)
    assert found.is_verified


def test_too_little_for_any_batch_is_one_line() -> None:
    with pytest.raises(RunFailed, match="not even a batch of 2 fits"):
        search(Device(lambda b: 2 * GB, 1 * GB), 1 * GB, 64, 512)


def test_a_limit_below_the_devices_own() -> None:
    found = search(Device(lambda b: 0.5 * GB + 1e6 * b, 99 * GB), 1 * GB, 250, 10**6)
    assert found.max_batch == pytest.approx((1 * GB * (1 - MARGIN) - 0.5 * GB) / 1e6, abs=1)
    assert found.is_verified


@settings(max_examples=60, deadline=None)
@given(
    fixed=st.floats(0.1, 1.5),
    early=st.floats(0.0, 0.5),
    per_sample=st.floats(0.01, 20.0),
    top=st.integers(1, 20_000),
    seed=st.integers(0, 1000),
)
# One probe lies just above what is allowed, near enough to its prediction.
@example(fixed=0.109375, early=0.0, per_sample=0.109375, top=356, seed=380)
# The search begins far below, and what fits lies between two of its doublings.
@example(fixed=1.28125, early=0.5, per_sample=0.4375, top=21, seed=214)
def test_whatever_the_curve_the_answer_fits(fixed: float, early: float, per_sample: float, top: int, seed: int) -> None:
    noise = np.random.default_rng(seed)
    layout: dict[int, float] = {}

    def peak(batch: int) -> float:
        straight = max(fixed * GB + 1e6 * per_sample * batch, (fixed + early) * GB)
        return straight * layout.setdefault(batch, 1 + 0.02 * noise.random())

    limit, most = 2.5 * GB, 50_000
    probes = PeakProbes(Device(peak, limit), limit)
    found = find_largest(probes, fit_peak(probes, top, most), most, "data")
    assert found.max_batch in probes.points
    assert probes.points[found.max_batch] <= limit
    if found.bound == "memory":
        truth = (limit * (1 - MARGIN) - fixed * GB) / (1e6 * per_sample)
        # Noise of 2 % of the whole is more of what grows with the batch.
        assert found.max_batch >= 0.85 * truth - 0.06 * limit / (1e6 * per_sample) - 2
    else:
        assert found.max_batch == most
    assert len(probes.points) + len(probes.failed) <= 25
