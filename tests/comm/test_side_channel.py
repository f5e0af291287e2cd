"""Flags and times of every step, in one small collective."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.comm.side_channel import SideChannel


class Two(LocalCommunicator):
    """The first of two ranks, of which the other one sends the flags 0b110 and the times 0.5 and 0.25."""

    size = 2

    def __init__(self) -> None:
        self.reduced: list[tuple[str, torch.dtype, int]] = []

    def reduce_(self, flat: Tensor, name: str, on_chunk: object = None):  # type: ignore[no-untyped-def]
        self.reduced.append((name, flat.dtype, flat.numel()))
        flat[[1, 2]] += 1.0
        flat[-2:] = torch.tensor([0.5, 0.25], dtype=flat.dtype)
        return super().reduce_(flat, name)


def test_flags_are_ored_and_times_come_by_rank() -> None:
    channel = SideChannel(comm := Two())
    channel.begin(0b11, (2.0, 1.5))
    flags, times = channel.finish()
    assert flags == 0b111
    assert times.tolist() == [[2.0, 1.5], [0.5, 0.25]]
    assert comm.reduced == [("side", torch.float64, 8 + 2 * 2)]


def test_nothing_lingers_from_the_step_before() -> None:
    channel = SideChannel(LocalCommunicator())
    channel.begin(0b10000101, (1.0, 2.0))
    first = channel.finish()
    channel.begin(0, None)
    assert channel.finish()[0] == 0 and first[0] == 0b10000101
    # What was returned is a copy.
    assert np.array_equal(first[1], [[1.0, 2.0]])


def test_finish_comes_after_begin() -> None:
    with pytest.raises(RuntimeError, match="waits for what was not sent"):
        SideChannel(LocalCommunicator()).finish()
