"""Random numbers of compressors, keyed by (seed, step, client, layer): the same on any number of ranks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hpclbfl.comm.compression import Key

_STREAM = 7
ALL = -1
"""Stands for a client where all clients draw alike."""
_WORD = 4
"""Dithers in one 64-bit word."""


def generator(key: Key) -> np.random.Generator:
    """Of a layer of a client in a step."""
    return np.random.Generator(_philox(key))


def dither(num_values: int, key: Key, device: torch.device) -> Tensor:
    """[n] numbers between 0 and 1, float32, evenly spread over 2^16 values; never 0 or 1."""
    words = _philox(key).random_raw(-(-num_values // _WORD)).view(np.uint16)[:num_values]
    return torch.from_numpy((words.astype(np.float32) + 0.5) * 2.0**-16).to(device)


def places(num_values: int, count: int, key: Key, device: torch.device) -> Tensor:
    """[count] different places among n, int64, ascending."""
    drawn = generator(key).choice(num_values, count, replace=False, shuffle=False)
    drawn.sort()
    return torch.from_numpy(drawn.astype(np.int64)).to(device)


def _philox(key: Key) -> np.random.Philox:
    spawn = (_STREAM, key.step, key.client + 1, key.layer)
    return np.random.Philox(np.random.SeedSequence(key.seed, spawn_key=spawn))
