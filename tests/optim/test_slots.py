from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import nn

# isort: split
import hpclbfl.core.vision  # noqa: F401  (before timm)

# isort: split
from timm.optim import Lamb, Lars

from hpclbfl.optim.slots import reset_slots

MAKERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, fused=True),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "plain": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "lars": lambda p: Lars(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "lars_nesterov": lambda p: Lars(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01, foreach=True),
    "lars_plain": lambda p: Lars(p, lr=0.1, weight_decay=0.01),
    "lamb": lambda p: Lamb(p, lr=0.1, weight_decay=0.01),
    "lamb_foreach": lambda p: Lamb(p, lr=0.1, weight_decay=0.01, foreach=True),
}


@pytest.mark.parametrize("name", MAKERS)
def test_laid_out_state_changes_no_step(name: str) -> None:
    """Bitwise, over three steps, compared with an optimizer that creates its state itself."""
    weights = []
    for laid_out in (False, True):
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(50))
        optimizer = MAKERS[name]([parameter])
        if laid_out:
            reset_slots(optimizer)
        for _ in range(3):
            parameter.grad = torch.randn(50)
            optimizer.step()
        weights.append(parameter.detach())
    assert torch.equal(*weights)


def test_reset_forgets_momentum() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = MAKERS["sgd"]([parameter])
    parameter.grad = torch.ones(2)
    optimizer.step()
    reset_slots(optimizer)
    assert optimizer.state[parameter]["momentum_buffer"].tolist() == [0, 0]


def test_reset_forgets_the_count_of_lamb() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = MAKERS["lamb"]([parameter])
    parameter.grad = torch.ones(2)
    optimizer.step()
    assert optimizer.param_groups[0]["step"] == 1
    reset_slots(optimizer)
    assert optimizer.param_groups[0]["step"] == 0
    assert {k: v.tolist() for k, v in optimizer.state[parameter].items()} == {"exp_avg": [0, 0], "exp_avg_sq": [0, 0]}
