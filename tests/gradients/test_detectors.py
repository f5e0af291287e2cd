"""Detectors of critical phases, by hand: Accordion, the log ratio, the noise scale; and how they are watched."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from hpclbfl.config.components import DETECTORS
from hpclbfl.config.detectors import Watched
from hpclbfl.core.errors import ConfigError
from hpclbfl.gradients import Context, NoiseAverages
from hpclbfl.gradients.chain import Chain
from hpclbfl.gradients.gradient import Gradient, Layout
from hpclbfl.gradients.scaler import StepUpScale
from hpclbfl.gradients.watch import Watch
from tests.components import config_of

PAIR = Layout(("w",), ((2,),), (slice(0, 2),), torch.float64, torch.device("cpu"))


def of(*values: float) -> Gradient:
    """A gradient with these two values."""
    return Gradient(torch.tensor(values, dtype=torch.float64), PAIR)


def detector(name: str, **keys: Any) -> Any:
    return DETECTORS.make(config_of(DETECTORS, name=name, **keys))


def changes(
    name: str, gradients: list[Gradient], contexts: list[Context] | None = None, **keys: Any
) -> tuple[list[float], Any]:
    """What a detector sees, step after step, and its last state."""
    made, found = detector(name, **keys), []
    state = made.init(PAIR)
    for step, gradient in enumerate(gradients):
        state = made.observe(gradient, state, Context(0, step) if contexts is None else contexts[step])
        found.append(state.change.item())
    return found, state


def epochs(steps: int, per_epoch: int, lr: list[float] | None = None) -> list[Context]:
    """Steps of so many to an epoch."""
    return [
        Context(0, k, epoch=k / per_epoch, epoch_after=(k + 1) / per_epoch, lr=1.0 if lr is None else lr[k])
        for k in range(steps)
    ]


def test_accordion_compares_accumulated_gradients() -> None:
    """Three epochs of two steps: means (3, 4) / 2, (6, 8) / 2 and (0, 7.5) / 2, norms 2.5, 5 and 3.75."""
    gradients = [of(3, 0), of(0, 4), of(6, 4), of(0, 4), of(5, 5), of(-5, 2.5)]
    found, state = changes("accordion", gradients, epochs(6, 2), interval_epochs=1)
    # The change is that of the epoch that ends with the step, and is held until the next one ends.
    assert [math.isnan(change) for change in found] == [True] * 3 + [False] * 3
    assert found[3:] == pytest.approx([1.0, 1.0, 0.25])
    assert state.norm.item() == pytest.approx(3.75) and state.epochs == 3 and not state.total.any()
    # The norms of the steps, which do not cancel, would give something else.
    assert abs(found[5] - 0.25) < 1e-12


def test_accordion_compares_every_interval() -> None:
    """One step an epoch, norms 1, 2, 3, ...: the 4th is compared with the 1st, the 7th with the 4th."""
    found, _ = changes("accordion", [of(k, 0) for k in range(1, 9)], epochs(8, 1), interval_epochs=3)
    assert [math.isnan(change) for change in found] == [True] * 3 + [False] * 5
    assert found[3:] == pytest.approx([3.0] * 3 + [0.75] * 2)


def test_accordion_does_not_see_the_batch_that_it_changes() -> None:
    """Epochs of two steps, then of one: the mean gradient stays, the sum over steps would halve."""
    contexts = [*epochs(4, 2), Context(0, 4, epoch=2.0, epoch_after=3.0, lr=1.0)]
    found, _ = changes("accordion", [of(1, 2)] * 5, contexts, interval_epochs=1)
    assert found[3:] == [0.0, 0.0]


def test_accordion_leaves_out_what_is_not_finite() -> None:
    gradients = [of(3, 4), of(math.nan, 1), of(6, 8), of(math.inf, 1), of(3, 4), of(3, 4)]
    found, _ = changes("accordion", gradients, epochs(6, 2), interval_epochs=1)
    assert found[3:] == pytest.approx([1.0, 1.0, 0.5])
    # An epoch without any finite gradient is left out as a whole.
    broken = [of(3, 4), of(math.nan, 0), of(6, 8)]
    found, _ = changes("accordion", broken, epochs(3, 1), interval_epochs=1)
    assert math.isnan(found[1]) and found[2] == pytest.approx(1.0)


def test_accordion_takes_a_decayed_rate_as_critical() -> None:
    """From the step of the decay to the next comparison; also where the gradient does not change."""
    rates = [1.0] * 5 + [0.1] * 5
    found, _ = changes("accordion", [of(3, 4)] * 10, epochs(10, 2, rates), interval_epochs=2)
    # Comparisons at the ends of steps 1, 5 and 9. The decay is in the last step before one.
    assert all(map(math.isnan, found[:5])) and found[5:] == [math.inf] * 4 + [0.0]


@pytest.mark.parametrize(
    "rates",
    [
        [0.1 * k for k in range(1, 13)],
        [0.5 * (1 + math.cos(math.pi * k / 12)) for k in range(12)],
        [1.0, 0.6, 0.4, 0.25, 0.2, 0.15] * 2,
    ],
    ids=["warm-up", "cosine", "slow falls"],
)
def test_accordion_takes_no_other_schedule_as_a_decay(rates: list[float]) -> None:
    found, _ = changes("accordion", [of(3, 4)] * 12, epochs(12, 1, rates), interval_epochs=1)
    assert found[1:] == [0.0] * 11


def test_accordion_needs_the_parameters() -> None:
    with pytest.raises(ValueError, match=r"^accordion adds up gradients: it needs the layout of the parameters$"):
        detector("accordion").init(None)
    with pytest.raises(ConfigError, match=r"^detector accordion needs to know where epochs end"):
        changes("accordion", [of(3, 4)])


def test_an_infinite_change_reaches_any_threshold() -> None:
    rates = [1.0, 1.0, 0.1]
    step_up = StepUpScale(4.0, threshold=1e15, change=config_of(DETECTORS, name="accordion", interval_epochs=1))
    state = step_up.init(PAIR)
    for ctx in epochs(3, 1, rates):
        _, state, metrics = step_up.update(of(3, 4), state, ctx)
    assert metrics["scale"].item() == 4.0 and math.isinf(metrics["grad_change"].item())


def test_accordion_takes_the_norm_that_ranks_agree_on() -> None:
    """Here they agree on 16 of 25."""
    contexts = [
        Context(0, k, epoch=k, epoch_after=k + 1, agree=agree)
        for k, agree in enumerate((None, lambda norm: 0.64 * norm))
    ]
    found, _ = changes("accordion", [of(3, 4)] * 2, contexts, interval_epochs=1)
    assert found[1] == pytest.approx(0.2)


def test_log_ratio_is_symmetric() -> None:
    """Squared norms 4, 6, 4, 1: log 1.5, log 1.5, log 4."""
    found, _ = changes("log_ratio", [of(x**0.5, 0) for x in (4, 6, 4, 1)])
    assert math.isnan(found[0])
    assert found[1:] == pytest.approx([math.log(1.5), math.log(1.5), math.log(4)])
    # Upwards it fires where Eq. 8 does.
    assert config_of(DETECTORS, name="log_ratio").scaler_threshold == pytest.approx(math.log1p(0.5))


def test_log_ratio_knows_nothing_of_norms_under_rounding() -> None:
    found, state = changes("log_ratio", [of(x, 0) for x in (1.0, 0.0, 1.0, 1e-8, math.nan, 2.0, 4.0)])
    assert [math.isnan(change) for change in found] == [True] * 6 + [False]
    assert found[-1] == pytest.approx(math.log(4)) and state.previous.item() == 16.0


def noisy(*scales: float | None) -> list[Context]:
    def averages(scale: float | None) -> NoiseAverages | None:
        return None if scale is None else NoiseAverages(*(torch.tensor(x, dtype=torch.float64) for x in (1.0, scale)))

    return [Context(0, k, noise=averages(scale)) for k, scale in enumerate(scales)]


def test_noise_scale_is_compared_with_that_before_the_lag() -> None:
    contexts = noisy(10.0, 20.0, 15.0, 10.0, None, 30.0, 40.0)
    found, _ = changes("noise_scale", [of(1, 0)] * 7, contexts, lag=2)
    # 15 against 10, 10 against 20, then one that is not measured, now and two steps later.
    assert [math.isnan(change) for change in found] == [True, True, False, False, True, False, True]
    assert [found[2], found[3], found[5]] == pytest.approx([0.5, 0.5, 2.0])


def test_noise_scale_knows_nothing_of_one_that_is_not_positive() -> None:
    found, state = changes("noise_scale", [of(1, 0)] * 4, noisy(-5.0, 10.0, math.inf, 20.0), lag=1)
    assert all(map(math.isnan, found)) and state.window.tolist() == [20.0]
    # A step without a finite gradient is not counted.
    gradients = [of(1, 0), of(math.nan, 0), of(1, 0)]
    found, _ = changes("noise_scale", gradients, noisy(10.0, 99.0, 15.0), lag=1)
    assert math.isnan(found[1]) and found[2] == 0.5


def test_a_ring_from_a_checkpoint_follows_the_gradients_device() -> None:
    norm = torch.ones((), dtype=torch.float64, device="meta")
    made = detector("noise_scale", lag=3)
    after = made.observe(Gradient([], None, norm), made.init(None), Context(0, 0))
    assert {t.device.type for t in (after.window, after.previous, after.change)} == {"meta"}


def watch() -> Watch:
    names = ("squared_norm", {"name": "accordion", "interval_epochs": 1})
    configs = [config_of(DETECTORS, **(name if isinstance(name, dict) else {"name": name})) for name in names]
    return Watch([Watched(config.name, config, 0.75) for config in configs])


def test_a_watch_measures_and_leaves_the_gradient_alone() -> None:
    """Squared norms 25, 50, 50: changes 1 and 0; epochs of one step: norms 5, 7.07."""
    chain, found = Chain([watch(), StepUpScale(4.0)], 0, layout=PAIR), []
    for ctx, gradient in zip(epochs(3, 1), (of(3, 4), of(5, 5), of(5, 5)), strict=True):
        after, metrics = chain.update(chain.agreed(gradient), ctx)
        assert after.values is gradient.values
        found.append({name: value.item() for name, value in metrics.items()})
    assert list(found[0]) == [
        *("grad_sq_norm", "squared_norm change", "squared_norm fires", "accordion change", "accordion fires"),
        *("grad_change", "scale"),
    ]
    assert all(math.isnan(value) for name, value in found[0].items() if name.endswith(("change", "fires")))
    assert found[1]["squared_norm fires"] == 1.0 and found[1]["accordion fires"] == 0.0
    assert found[1]["accordion change"] == pytest.approx(2**0.5 - 1)
    assert chain.change_of("squared_norm").item() == 0.0
    # Whoever asks has a threshold of their own, and may name it before the first step.
    own = config_of(DETECTORS, name="accordion", interval_epochs=1, threshold=0.1)
    assert chain.change_of(own).item() == 0.0
    assert Chain([watch()], 0, layout=PAIR).change_of(own).isnan()
    with pytest.raises(LookupError, match="'accordion' is not watched"):
        chain.change_of("accordion")
    with pytest.raises(LookupError, match="no detector is watched"):
        Chain([StepUpScale(4.0)], 0).change_of("squared_norm")


def test_the_state_of_a_watch_is_checked_and_goes_on() -> None:
    whole, cut = (Chain([watch()], 0, layout=PAIR) for _ in range(2))
    gradients = [of(3, 4), of(5, 5), of(1, 0), of(2, 2)]
    for step, (ctx, gradient) in enumerate(zip(epochs(4, 2), gradients, strict=True)):
        if step == 3:
            again = Chain([watch()], 0, layout=PAIR)
            again.check_state(cut.state_dict())
            again.load_state_dict(cut.state_dict())
            cut = again
        first, second = (chain.update(gradient, ctx)[1] for chain in (whole, cut))
    assert {k: v.item() for k, v in first.items()} == {k: v.item() for k, v in second.items()}
    assert not math.isnan(first["accordion change"].item())
