from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hpclbfl.config.components import MODELS
from hpclbfl.models import DataSpec, make_model
from hpclbfl.models.pooling import AdaptiveAvgPool2d, by_matrices
from tests.components import config_of


@pytest.mark.parametrize("output_size", [2, 7, (3, 5), (None, 4), (6, 1)])
@pytest.mark.parametrize("side", [1, 2, 7, 13])
def test_matrices_give_the_same_means_and_gradients(output_size: Any, side: int) -> None:
    images = torch.randn(2, 3, side, side + 4, dtype=torch.float64, requires_grad=True)
    expected = nn.functional.adaptive_avg_pool2d(images, output_size)
    found = by_matrices(images, output_size)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((pooled * weights).sum(), images)[0] for pooled in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("model", "side"), [("vgg11", 32), ("vgg11_bn", 32), ("alexnet", 64), ("alexnet_small", 8)])
def test_no_pooling_without_a_deterministic_backward_is_left(model: str, side: int) -> None:
    net = make_model(config_of(MODELS, name=model), DataSpec((3, side, side), 4))
    pools = [m for m in net.modules() if isinstance(m, nn.AdaptiveAvgPool2d)]
    assert pools and all(isinstance(pool, AdaptiveAvgPool2d) for pool in pools)
