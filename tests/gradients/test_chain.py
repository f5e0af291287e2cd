"""Gradients with a lazy factor, and chains of transforms: by hand, in both orders, and with values replaced."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpclbfl.core.errors import ConfigError, DataError
from hpclbfl.gradients import Context
from hpclbfl.gradients.chain import Chain
from hpclbfl.gradients.clip import Clip
from hpclbfl.gradients.gradient import Gradient, Layout
from hpclbfl.gradients.scaler import StepUpScale


def of(value: float) -> Gradient:
    """A gradient of this squared norm."""
    return Gradient(torch.tensor([value], dtype=torch.float64).sqrt())


class Centred:
    """Takes the mean away, and counts its steps."""

    def init(self, layout: Layout | None) -> int:
        return 0

    def update(self, gradient: Gradient, state: int, ctx: Context) -> tuple[Gradient, int, dict[str, Tensor]]:
        mean = gradient.flat.mean()
        return gradient.replaced(gradient.flat - mean), state + 1, {"mean": mean}


def net() -> nn.Linear:
    return nn.Linear(3, 2, dtype=torch.float64)


def test_clip_by_hand() -> None:
    clip = Clip(max_norm=2.0)
    for sq_norm, factor in ((16.0, 0.5), (4.0, 1.0), (0.0, 1.0)):
        gradient, _, _ = clip.update(of(sq_norm), None, Context(0, 0))
        assert gradient.factor is not None and gradient.factor.item() == factor
    gradient, _, _ = clip.update(of(torch.nan), None, Context(0, 0))
    assert gradient.factor is not None and gradient.factor.isnan()


@pytest.mark.parametrize("reverse", [False, True])
def test_both_measure_what_was_not_scaled_whatever_their_order(reverse: bool) -> None:
    """Squared norms 16, 64: change 3, factor 4 after a clip to norm 2, whose multiplier is 2 / 8."""
    transforms = [StepUpScale(factor=4.0, threshold=2.0), Clip(max_norm=2.0)]
    chain, factors = Chain(transforms[::-1] if reverse else transforms, seed=0), []
    for step, value in enumerate((16.0, 64.0)):
        gradient, metrics = chain.update(chain.agreed(of(value)), chain.context(step))
        assert gradient.factor is not None and not gradient.is_replaced
        factors.append(gradient.factor.item())
    assert factors == [0.5, 4 * 0.25]
    assert {name: value.item() for name, value in metrics.items()} == {
        "grad_sq_norm": pytest.approx(64.0),
        "grad_change": pytest.approx(3.0),
        "scale": 4.0,
    }
    assert not chain.is_identity and not chain.needs_layers


def test_a_chain_that_only_measures_leaves_no_factor() -> None:
    chain = Chain([StepUpScale(factor=1.0, when="never")], seed=0, client=3)
    gradient, metrics = chain.update(chain.agreed(of(9.0)), chain.context(0))
    assert gradient.factor is None and list(metrics) == ["local_grad_sq_norm", "grad_change", "scale"]


def test_a_layout_is_that_of_the_buckets() -> None:
    """The last parameter's gradient comes first."""
    module = net()
    layout = Layout.of(module.named_parameters())
    assert layout.names == ("weight", "bias") and layout.shapes == ((2, 3), (2,)) and layout.size == 8
    weight, bias = torch.arange(6.0).view(2, 3), torch.tensor([7.0, 9.0])
    gradient = Gradient([weight, bias], layout)
    assert gradient.flat.tolist() == [7, 9, 0, 1, 2, 3, 4, 5]
    again = Gradient(gradient.flat, layout)
    assert torch.equal(again.tensors[0], weight) and torch.equal(again.tensors[1], bias)
    assert again.layer_sq_norms.tolist() == [55, 130] and again.sq_norm.item() == 185
    # A parameter that the backward pass did not reach.
    assert Gradient([weight, None], layout).flat.tolist() == [0, 0, 0, 1, 2, 3, 4, 5]


def test_values_of_another_shape_are_refused() -> None:
    gradient = Gradient(torch.zeros(8), Layout.of(net().named_parameters()))
    with pytest.raises(ValueError, match=r"a flat gradient of shape \[7\] for 8 parameters"):
        gradient.replaced(torch.zeros(7))
    with pytest.raises(ValueError, match="do not have the shapes of the parameters"):
        gradient.replaced([torch.zeros(3, 2), torch.zeros(2)])


def test_replaced_values_are_measured_anew_and_keep_the_factor() -> None:
    layout = Layout.of(net().named_parameters())
    chain = Chain([Clip(max_norm=1.0), Centred(), StepUpScale(factor=2.0, when="always")], 0, layout=layout)
    measured = Gradient(torch.tensor([3.0] * 4 + [1.0] * 4), layout)
    gradient, metrics = chain.update(chain.agreed(measured), chain.context(0))
    assert gradient.is_replaced and gradient.flat.tolist() == [1.0] * 4 + [-1.0] * 4
    assert gradient.sq_norm.item() == 8 and metrics["grad_sq_norm"].item() == 40 and metrics["mean"].item() == 2
    assert gradient.factor is not None and gradient.factor.item() == pytest.approx(2 / 40**0.5)
    assert chain.state_dict()["pipeline"][1] == 1


def test_a_state_goes_on_and_one_of_another_chain_is_refused() -> None:
    chain = Chain([StepUpScale(factor=4.0, threshold=2.0)], seed=0)
    chain.update(chain.agreed(of(16.0)), chain.context(0))
    other = Chain([StepUpScale(factor=4.0, threshold=2.0)], seed=0)
    other.check_state(chain.state_dict())
    other.load_state_dict(chain.state_dict())
    assert other.update(of(64.0), 1)[1]["grad_change"].item() == pytest.approx(3.0)
    with pytest.raises(DataError, match="pipeline has 1 entries, not 2"):
        Chain([StepUpScale(4.0), Clip(1.0)], seed=0).check_state(chain.state_dict())


def test_a_transform_that_returns_anything_else_is_named() -> None:
    class Wrong:
        def init(self, layout: Layout | None) -> None:
            return None

        def update(self, gradient: Gradient, state: None, ctx: Context) -> tuple[Any, None, dict[str, Tensor]]:
            return gradient.flat, None, {}

    layout = Layout.of(net().named_parameters())
    with pytest.raises(ConfigError, match=r"^Wrong\.update gives no Gradient first, but tensor"):
        Chain([Wrong()], 0, layout=layout).update(Gradient(torch.zeros(8), layout), 0)


def test_an_edited_gradient_is_the_owners_or_a_copy() -> None:
    layout = Layout.of(net().named_parameters())
    values = torch.arange(8.0, dtype=torch.float64)
    foreign = Gradient(values, layout).edited()
    assert foreign.is_replaced and torch.equal(foreign.flat, values) and foreign.flat is not values
    own = Gradient(values, layout, is_owned=True).scaled(torch.tensor(0.5)).edited()
    assert own.flat is values and not own.is_replaced and own.factor is not None and own.factor.item() == 0.5
    own.flat.add_(1.0)
    assert own.measured.sq_norm.item() == 140.0 and own.sq_norm.item() == sum(k**2 for k in range(1, 9))
    with pytest.raises(ValueError, match="the norms alone are known"):
        own.measured.tensors  # noqa: B018 - they are gone
    # One part is missing, another does not lie in one piece.
    parts = [torch.ones(3, 2, dtype=torch.float64).T, None]
    whole = Gradient(parts, layout, is_owned=True).edited()
    assert whole.is_replaced and [part.tolist() for part in whole.tensors] == [[[1.0] * 3] * 2, [0.0] * 2]
    assert whole.tensors[0].is_contiguous()


def test_ranks_that_round_differently_step_with_the_first_ones_values() -> None:
    """What a transform changes is made equal, and its norm after it."""
    layout = Layout.of(net().named_parameters())
    seen: list[list[int]] = []

    def first_ranks(tensor: Tensor) -> Tensor:
        seen.append(list(tensor.shape))
        return tensor if tensor.dim() else tensor + 100.0

    chain = Chain([Centred(), Clip(max_norm=1.0)], seed=0, layout=layout, agree=first_ranks)
    values = torch.arange(8.0, dtype=torch.float64)
    gradient, metrics = chain.update(chain.agreed(Gradient(values, layout)), chain.context(0))
    # The norm as it came, the values, and their norm, from which the clip is taken.
    assert seen == [[], [8], []]
    assert metrics["grad_sq_norm"].item() == 240.0
    assert gradient.factor is not None and gradient.factor.item() == pytest.approx(142.0**-0.5)


def test_a_detector_of_values_behind_one_that_changes_them_sees_what_came() -> None:
    class Doubling:
        """Doubles in place, where it may."""

        def init(self, layout: Layout | None) -> None:
            return None

        def update(self, gradient: Gradient, state: None, ctx: Context) -> tuple[Gradient, None, dict[str, Tensor]]:
            gradient = gradient.edited()
            gradient.flat.mul_(2.0)
            return gradient, None, {}

    layout = Layout.of(net().named_parameters())
    for detector, in_place in (("accordion", False), ("squared_norm", True)):
        values = torch.ones(8, dtype=torch.float64)
        chain = Chain([Doubling(), StepUpScale(2.0, 0.5, change=detector)], seed=0, layout=layout)
        context = chain.context(0, epoch=0.0, lr=0.1, epoch_after=0.5)
        gradient, metrics = chain.update(Gradient(values, layout, is_owned=True), context)
        assert (gradient.flat is values) == in_place and gradient.flat.tolist() == [2.0] * 8
        assert metrics["grad_sq_norm"].item() == 8.0 and chain.states is not None
        if detector == "accordion":
            assert chain.states[1].detector.total.tolist() == [0.5] * 8
        else:
            assert chain.states[1].detector.previous.item() == 8.0


def test_layers_are_measured_before_a_transform_changes_them() -> None:
    layout = Layout.of(net().named_parameters())
    chain = Chain([Centred(), StepUpScale(2.0, 0.1, change="selsync")], seed=0, layout=layout)
    assert chain.needs_layers
    gradient = Gradient(torch.arange(8.0, dtype=torch.float64), layout)
    chain.update(gradient, chain.context(0))
    assert gradient._layer_sq_norms is not None
