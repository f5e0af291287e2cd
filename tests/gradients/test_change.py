from __future__ import annotations

import math

import pytest
import torch

from hpclbfl.gradients.change import DECAY, WINDOW, ChangeState, SmoothedChange, SquaredNormChange


def of(*values: float) -> torch.Tensor:
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=torch.float64)


def test_change_by_hand() -> None:
    """Eq. 8 on squared norms 4, 6, 3: |6 - 4| / 4 and |3 - 6| / 6."""
    state, changes = ChangeState(), []
    for value in (4.0, 6.0, 3.0):
        state = SquaredNormChange().observe(of(value), None, state)
        changes.append(state.change.item())
    assert math.isnan(changes[0])
    assert changes[1:] == [0.5, 0.5]


def test_a_gradient_that_is_not_finite_has_no_change_and_is_no_predecessor() -> None:
    metric = SquaredNormChange()
    state = metric.observe(of(4.0), None, ChangeState())
    for value in (math.inf, math.nan):
        state = metric.observe(of(value), None, state)
        assert math.isnan(state.change.item())
    assert metric.observe(of(5.0), None, state).change.item() == 0.25


def test_selsync_smooths_sums_of_norms_and_their_changes() -> None:
    """Layers of norms (1, 2), (2, 4), (1, 1): sums 3, 6, 2."""
    metric, state, changes = SmoothedChange(), ChangeState(), []
    for norms in ((1.0, 2.0), (2.0, 4.0), (1.0, 1.0)):
        state = metric.observe(of(0.0), of(*norms).square(), state)
        changes.append(state.change.item())
    first, second = 3.0, (6 + DECAY * 3) / (1 + DECAY)
    third = (2 + DECAY * 6 + DECAY**2 * 3) / (1 + DECAY + DECAY**2)
    one, two = (second - first) / first, (second - third) / second
    assert math.isnan(changes[0])
    assert changes[1:] == pytest.approx([one, (two + DECAY * one) / (1 + DECAY)], rel=1e-12)


def test_selsync_forgets_after_its_window_and_skips_what_is_not_finite() -> None:
    metric, state = SmoothedChange(), ChangeState()
    state = metric.observe(of(0.0), of(1e12), state)
    for _ in range(2 * WINDOW + 1):
        state = metric.observe(of(0.0), of(4.0), state)
    assert state.previous.item() == pytest.approx(2.0, rel=1e-12)
    assert state.change.item() == pytest.approx(0.0, abs=1e-12)
    broken = metric.observe(of(0.0), of(math.inf), state)
    assert math.isnan(broken.change.item())
    after, without = (metric.observe(of(0.0), of(9.0), s) for s in (broken, state))
    assert after.change == without.change and after.previous == without.previous


def test_windows_from_a_checkpoint_follow_the_gradients_device() -> None:
    """`meta` stands for a GPU: a device that is not the checkpoint's."""
    state = ChangeState(torch.zeros((), dtype=torch.float64), torch.zeros(()), torch.zeros(2, WINDOW))
    norms = torch.ones(3, dtype=torch.float64, device="meta")
    after = SmoothedChange().observe(norms.sum(), norms, state)
    assert after.windows is not None
    assert {t.device.type for t in (after.windows, after.previous, after.change)} == {"meta"}
