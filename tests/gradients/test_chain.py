from __future__ import annotations

import pytest
import torch

from hpclbfl.gradients import Context
from hpclbfl.gradients.chain import Chain
from hpclbfl.gradients.clip import Clip
from hpclbfl.gradients.scaler import StepUpScale


def of(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def test_clip_by_hand() -> None:
    clip = Clip(max_norm=2.0)
    assert clip.update(of(16.0), None, Context(0, 0))[0].item() == 0.5
    assert clip.update(of(4.0), None, Context(0, 0))[0].item() == 1.0
    assert clip.update(of(0.0), None, Context(0, 0))[0].item() == 1.0
    assert torch.isnan(clip.update(of(torch.nan), None, Context(0, 0))[0])


def test_a_chain_clips_first_and_measures_what_was_not_clipped() -> None:
    """Squared norms 16, 64: change 3, factor 4 after a clip to norm 2, whose multiplier is 2 / 8."""
    chain = Chain([StepUpScale(factor=4.0, threshold=2.0), Clip(max_norm=2.0)])
    state, products = chain.init(), []
    for step, value in enumerate((16.0, 64.0)):
        product, state = chain.update(of(value), state, Context(0, step))
        products.append(product.item())
    assert products == [0.5, 4 * 0.25]
    assert state[0].detector.change.item() == 3.0 and state[0].scale.item() == 4.0
    assert not chain.is_identity and not chain.needs_layers


def test_an_empty_chain_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one transform"):
        Chain([])
