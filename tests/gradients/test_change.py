from __future__ import annotations

import math

import pytest
import torch

from hpclbfl.gradients import Context
from hpclbfl.gradients.change import ChangeState, Detector
from hpclbfl.gradients.detectors.selsync import DECAY, WINDOW, SmoothedChange
from hpclbfl.gradients.detectors.squared_norm import SquaredNormChange
from hpclbfl.gradients.gradient import Gradient
from hpclbfl.gradients.scaler import StepUpScale


def of(*values: float) -> torch.Tensor:
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=torch.float64)


def observe(detector: Detector, sq_norm: torch.Tensor, layers: torch.Tensor | None, state: ChangeState) -> ChangeState:
    return detector.observe(Gradient([], None, sq_norm, layers), state, Context(0, 0))


def test_change_by_hand() -> None:
    """Eq. 8 on squared norms 4, 6, 3: |6 - 4| / 4 and |3 - 6| / 6."""
    state, changes = ChangeState(), []
    for value in (4.0, 6.0, 3.0):
        state = observe(SquaredNormChange(), of(value), None, state)
        changes.append(state.change.item())
    assert math.isnan(changes[0])
    assert changes[1:] == [0.5, 0.5]


def test_a_gradient_that_is_not_finite_has_no_change_and_is_no_predecessor() -> None:
    metric = SquaredNormChange()
    state = observe(metric, of(4.0), None, ChangeState())
    for value in (math.inf, math.nan):
        state = observe(metric, of(value), None, state)
        assert math.isnan(state.change.item())
    assert observe(metric, of(5.0), None, state).change.item() == 0.25


def smoothed(sums: list[float]) -> float:
    """Of the newest 25 sums, the newest last."""
    weights = [DECAY**age for age in range(WINDOW)]
    return sum(w * s for w, s in zip(weights, reversed(sums[-WINDOW:]), strict=True)) / sum(weights)


def test_selsync_smooths_sums_of_norms_once() -> None:
    """Two layers of norms k and 2 k: sums 3 k, k from 1 to 28; 24 steps fill the window but for one."""
    metric = SmoothedChange()
    state, changes, sums = metric.init(), [], []
    for k in range(1, WINDOW + 4):
        state = observe(metric, of(0.0), of(k, 2 * k).square(), state)
        changes.append(state.change.item())
        sums.append(3.0 * k)
    assert all(math.isnan(change) for change in changes[:WINDOW])
    expected = [(smoothed(sums[: k + 1]) - smoothed(sums[:k])) / smoothed(sums[:k]) for k in range(WINDOW, WINDOW + 3)]
    assert changes[WINDOW:] == pytest.approx(expected, rel=1e-12)


def test_selsync_sees_a_jump_at_once() -> None:
    """A norm that becomes ten times as large: 9 / (1 + 0.99 + ... + 0.99^24) = 0.405."""
    metric = SmoothedChange()
    state = metric.init()
    for norm in (1.0,) * WINDOW + (10.0,):
        state = observe(metric, of(0.0), of(norm * norm), state)
    assert state.change.item() == pytest.approx(9 * (1 - DECAY) / (1 - DECAY**WINDOW), rel=1e-12)
    assert 0.40 < state.change.item() < 0.41


def test_selsync_forgets_after_its_window_and_skips_what_is_not_finite() -> None:
    metric = SmoothedChange()
    state = observe(metric, of(0.0), of(1e12), metric.init())
    for _ in range(WINDOW + 1):
        state = observe(metric, of(0.0), of(4.0), state)
    assert state.previous.item() == pytest.approx(2.0, rel=1e-12)
    assert observe(metric, of(0.0), of(4.0), state).change.item() == pytest.approx(0.0, abs=1e-12)
    broken = observe(metric, of(0.0), of(math.inf), state)
    assert math.isnan(broken.change.item())
    after, without = (observe(metric, of(0.0), of(9.0), s) for s in (broken, state))
    assert after.change == without.change and after.previous == without.previous


def test_a_gradient_that_is_not_finite_does_not_fill_the_window() -> None:
    metric = SmoothedChange()
    state = metric.init()
    for step in range(WINDOW + 3):
        # Two of the steps are lost, so the change is known two steps later.
        state = observe(metric, of(0.0), of(math.nan if step in (0, 7) else 4.0), state)
        assert math.isnan(state.change.item()) == (step < WINDOW + 2), step


def test_a_window_from_a_checkpoint_follows_the_gradients_device() -> None:
    """`meta` stands for a GPU: a device that is not the checkpoint's."""
    norms = torch.ones(3, dtype=torch.float64, device="meta")
    after = observe(SmoothedChange(), norms.sum(), norms, SmoothedChange().init())
    assert after.window is not None
    assert {t.device.type for t in (after.window, after.previous, after.change)} == {"meta"}


def changes_of(metric: SquaredNormChange | SmoothedChange, *norms: float) -> list[float]:
    state, found = metric.init(), []
    for norm in norms:
        state = observe(metric, of(norm**2), of(norm**2).reshape(1), state)
        found.append(state.change.item())
    return found


def test_a_change_from_a_norm_under_rounding_is_not_known() -> None:
    """A client of one label: its loss falls to 0, and after an averaging it begins anew."""
    found = changes_of(SquaredNormChange(), 7.0, 1e-10, 1e-14, 0.0, 0.0, 7.0, 14.0)
    assert found[1] == pytest.approx(1.0) and found[6] == pytest.approx(3.0)
    assert [math.isnan(change) for change in found] == [True, False, True, True, True, True, False]


@pytest.mark.parametrize("norm, is_known", [(1e-6, True), (1.3e-7, True), (1.1e-7, False), (1e-20, False)])
def test_rounding_is_that_of_float32_beside_a_loss_of_order_1(norm: float, is_known: bool) -> None:
    assert math.isfinite(changes_of(SquaredNormChange(), norm, 0.5)[-1]) == is_known
    assert math.isfinite(changes_of(SmoothedChange(), *[norm] * WINDOW, 0.5)[-1]) == is_known
    # Beside a larger gradient it is larger.
    assert math.isfinite(changes_of(SquaredNormChange(), 1e-6, 100.0)[1]) is False


def test_selsync_does_not_go_on_firing_on_the_change_before() -> None:
    found = changes_of(SmoothedChange(), *[1e-9] * WINDOW, 5.0, 5.0)
    assert [math.isnan(change) for change in found] == [True] * (WINDOW + 1) + [False]


def test_a_change_that_is_not_known_scales_nothing() -> None:
    for when in ("delta_ge", "delta_lt"):
        transform = StepUpScale(4.0, threshold=0.5, when=when)
        _, state, _ = transform.update(Gradient(of(1e-14)), transform.init(), Context(0, 0, 0))
        gradient, state, metrics = transform.update(Gradient(of(7.0)), state, Context(0, 1, 0))
        assert gradient.factor == metrics["scale"] == 1.0 and math.isnan(state.detector.change.item())
