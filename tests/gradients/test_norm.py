from __future__ import annotations

import pytest
import torch

from hpclbfl.gradients.norm import PIECE, ROW, SquaredNorm, arithmetic, layer_squared_norms, squared_norm


@pytest.mark.parametrize("kind", ["normal", "constant", "heavy tails"])
def test_squared_norm_is_exact_enough_at_ten_million_elements(kind: str) -> None:
    torch.manual_seed(0)
    gradient = torch.randn(10_000_019) * 1e-3
    if kind == "constant":
        gradient.fill_(0.337)
    elif kind == "heavy tails":
        gradient.pow_(5)
    exact = sum(part.double().square().sum().item() for part in gradient.split(1 << 20))
    assert squared_norm([gradient]).item() == pytest.approx(exact, rel=1e-6)
    pieces = [gradient[:7], gradient[7:70_000].clone(), gradient[70_000:]]
    assert squared_norm(pieces).item() == pytest.approx(exact, rel=1e-6)


def test_squared_norm_by_hand() -> None:
    assert squared_norm([torch.tensor([3.0]), torch.tensor([[4.0, 12.0]])]).item() == 169.0
    assert layer_squared_norms([torch.tensor([3.0]), torch.tensor([[4.0, 12.0]])]).tolist() == [9.0, 160.0]


@pytest.mark.parametrize("size", [1, ROW - 1, ROW, ROW + 1, PIECE, PIECE + ROW + 5, 3 * PIECE])
def test_every_element_counts_once(size: int) -> None:
    norm = SquaredNorm(torch.empty(0))
    norm.add(torch.full((size,), 2.0))
    norm.add(torch.ones(1))
    assert norm.take().item() == 4 * size + 1
    assert norm.take().item() == 0


def test_ranks_on_this_device_agree() -> None:
    assert arithmetic(torch.device("cpu")) == arithmetic(torch.device("cpu"))
    assert torch.__version__ in arithmetic(torch.device("cpu"))
