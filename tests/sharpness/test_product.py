"""Hessian-vector products against the whole Hessian of small nets, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hpclbfl.sharpness.eigenpairs import top_eigenpairs
from hpclbfl.sharpness.lanczos import random_vector
from hpclbfl.sharpness.product import LossHessian, parameters_of
from hpclbfl.sharpness.spectrum import quadrature

LOSS = partial(functional.cross_entropy, reduction="sum", label_smoothing=0.1)
Batches = Sequence[tuple[Tensor, Tensor]]


def small_net() -> nn.Module:
    """78 parameters, with a BatchNorm whose running statistics are not those of the images."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 2, 3, stride=2), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(2, 6)
    ).double()
    with torch.no_grad():
        net[1].running_mean.fill_(0.3)
        net[1].running_var.fill_(2.0)
    return net


def batches_of(*sizes: int) -> Batches:
    torch.manual_seed(2)
    return [(torch.randn(n, 3, 3, 3, dtype=torch.float64), torch.randint(6, (n,))) for n in sizes]


def whole_hessian(net: nn.Module, batches: Batches) -> Tensor:
    """Of the mean loss over all samples, [P, P]."""
    net.eval()
    parameters = parameters_of(net)
    names = [name for name, _ in net.named_parameters()]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))

    def mean_loss(flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for p in parameters])
        values = {name: v.view_as(p) for name, v, p in zip(names, parts, parameters, strict=True)}
        return functional.cross_entropy(torch.func.functional_call(net, values, (images,)), labels, label_smoothing=0.1)

    flat = torch.cat([p.detach().reshape(-1) for p in parameters])
    hessian = torch.autograd.functional.hessian(mean_loss, flat)
    assert isinstance(hessian, Tensor)
    return hessian


def test_against_the_whole_hessian() -> None:
    net, batches = small_net(), batches_of(5, 3, 1)
    hessian = whole_hessian(net, batches)
    product = LossHessian(net.train(), batches, 9, LOSS)
    columns = torch.stack([product(unit) for unit in torch.eye(len(hessian), dtype=torch.float64)])
    torch.testing.assert_close(columns, hessian, atol=1e-12, rtol=1e-10)


def test_eigenvalues_of_a_net() -> None:
    net, batches = small_net(), batches_of(8, 8)
    exact = np.linalg.eigvalsh(whole_hessian(net, batches).numpy())
    product = LossHessian(net, batches, 16, LOSS)
    size = sum(p.numel() for p in net.parameters())
    by_magnitude = exact[np.argsort(-np.abs(exact))]

    def start(index: int) -> Tensor:
        return random_vector(size, torch.float64, torch.device("cpu"), 0, index)

    pairs = top_eigenpairs(product, start, 2, tolerance=1e-7, max_iterations=2000)
    assert [pair.eigenvalue for pair in pairs] == pytest.approx(by_magnitude[:2].tolist(), abs=1e-6)
    assert all(pair.residual < 1e-6 for pair in pairs)
    spectrum = quadrature(product, start(9), 50)
    assert spectrum.values[-1] == pytest.approx(exact[-1], abs=1e-6)
    assert spectrum.values[0] == pytest.approx(exact[0], abs=1e-6)


def test_shares_of_ranks_sum_up_weighted_by_samples() -> None:
    # Ranks with 5, 3 and no samples: each divides by all 8.
    net, batches = small_net(), batches_of(5, 3)
    vector = random_vector(sum(p.numel() for p in net.parameters()), torch.float64, torch.device("cpu"), 4)
    shares = [LossHessian(net, part, 8, LOSS)(vector) for part in ([batches[0]], [batches[1]], [])]
    torch.testing.assert_close(sum(shares), whole_hessian(net, batches) @ vector)
    assert not shares[2].any()


def test_a_loss_that_curves_downwards_has_a_negative_top_eigenvalue() -> None:
    # The sum of losses -2 x^2 - y^2 / 2 over two samples, divided by two: diag(-4, -1).
    net = nn.Linear(2, 1, bias=False).double()

    def loss(scores: Tensor, labels: Tensor) -> Tensor:
        x, y = scores[:, 0]
        return -4 * x**2 - y**2

    product = LossHessian(net, [(torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.int64))], 2, loss)
    pairs = top_eigenpairs(product, lambda k: torch.tensor([1.0, 2.0 - 3 * k]).double(), 2, 1e-10, 200)
    assert [pair.eigenvalue for pair in pairs] == pytest.approx([-4.0, -1.0], abs=1e-9)


def test_parameters_that_the_loss_does_not_see_have_no_curvature() -> None:
    net = nn.ModuleDict({"used": nn.Linear(1, 2, bias=False), "unused": nn.Linear(1, 1, bias=False)}).double()
    net.forward = lambda x: net["used"](x)  # type: ignore[method-assign]
    nn.init.zeros_(net["used"].weight)
    product = LossHessian(net, [(torch.ones(1, 1, dtype=torch.float64), torch.tensor([0]))], 1, LOSS)
    # p = (1/2, 1/2): the Hessian of the cross-entropy is diag(p) - p p' = [[1/4, -1/4], [-1/4, 1/4]].
    torch.testing.assert_close(product(torch.tensor([1.0, 0.0, 7.0]).double()), torch.tensor([0.25, -0.25, 0]).double())


class Attention(nn.Module):
    """One head over 3 places, by the fused kernel or written out."""

    def __init__(self, is_fused: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.inward, self.outward, self.is_fused = nn.Linear(2, 6), nn.Linear(2, 6), is_fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.inward(x.flatten(2)[..., :2]).unsqueeze(1).chunk(3, dim=-1)
        if self.is_fused:
            mixed = functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(2), dim=-1) @ v
        return self.outward(mixed.squeeze(1).mean(1))


def test_fused_attention_has_a_second_derivative() -> None:
    batches = batches_of(4)
    fused, written_out = (LossHessian(Attention(kind).double(), batches, 4, LOSS) for kind in (True, False))
    vector = random_vector(36, torch.float64, torch.device("cpu"), 6)
    torch.testing.assert_close(fused(vector), written_out(vector))
