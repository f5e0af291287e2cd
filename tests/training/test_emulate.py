from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from hpclbfl.algorithms.emulate import Emulation
from hpclbfl.config.sections import EmulateConfig


def emulation(rank: int, **values: object) -> Emulation:
    return Emulation(EmulateConfig.model_validate(values), rank, 0, torch.device("cpu"))


def test_slow_down_changes_at_its_step_and_rank() -> None:
    values = {"slowdown": [1, 3], "at": [{"step": 5, "rank": 0, "factor": 4}]}
    slow, fast = emulation(1, **values), emulation(0, **values)
    assert [slow.factor(4), slow.factor(5)] == [3, 3]
    assert [fast.factor(4), fast.factor(5)] == [1, 4]


def test_jitter_is_drawn_for_each_step_and_rank() -> None:
    factors = np.array([emulation(0, slowdown=[8, 8], jitter=0.1).factor(step) for step in range(500)])
    assert abs(np.log(factors / 8).std() - 0.1) < 0.01
    assert emulation(0, slowdown=[8, 8], jitter=0.1).factor(3) == factors[3]
    assert emulation(1, slowdown=[8, 8], jitter=0.1).factor(3) != factors[3]


def test_work_and_transfers_take_longer() -> None:
    slow = emulation(1, slowdown=[1, 4], bandwidth=1.0)
    begin = time.perf_counter()
    time.sleep(0.05)
    slow.stretch(0, begin)
    assert time.perf_counter() - begin >= 4 * 0.05
    begin = time.perf_counter()
    # 100 kB at 1 MB/s.
    slow.transfer(100_000)
    assert time.perf_counter() - begin >= 0.1


@pytest.mark.parametrize("values", [{"slowdown": [0.5, 1]}, {"bandwidth": 0}, {"at": [{"step": 1, "rank": 0}]}])
def test_nonsense_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        EmulateConfig.model_validate(values)
