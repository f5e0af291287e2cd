from __future__ import annotations

import traceback

import pytest
import torch

from hpclbfl.core.seeding import seed_generators


def test_keyed_draws_are_those_of_torchs_own_seeding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a stack was formatted in the inner loop")

    with monkeypatch.context() as patch:
        patch.setattr(traceback, "format_stack", refuse)
        seed_generators(3, 1, 250)
    seed, draws = torch.initial_seed(), torch.rand(5)
    torch.manual_seed(seed)
    assert torch.equal(torch.rand(5), draws)
    seed_generators(3, 1, 251)
    assert torch.initial_seed() != seed
