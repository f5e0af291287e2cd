"""The small encoder-decoder of the teacher `mse`, and how it is fitted to pairs of blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hpclbfl.core.state import checkpointed

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from hpclbfl.core.lazy import lazy

    torch = lazy("torch")

BLOCK, HIDDEN, CODE, FEATURES = 64, 32, 16, 3
ITERATIONS, RATE, LOOK_EVERY, PATIENCE = 200, 3e-3, 10, 3
"""Of Adam, on all pairs at once; it ends after as many looks at the quarter of the pairs that is held out without an
improvement."""
_INITIAL_STREAM = 10


@checkpointed
@dataclass(frozen=True)
class Net:
    """y = s x + decoder(encoder(x, features))."""

    weights: tuple[Tensor, ...]
    """s, 0-d; [BLOCK + FEATURES, HIDDEN]; [HIDDEN, CODE]; [CODE + FEATURES, HIDDEN]; [HIDDEN, BLOCK]."""
    lessons: int = 0
    """That it has been fitted to; 0: it is the identity."""

    def __call__(self, blocks: Tensor, features: Tensor) -> Tensor:
        """[N, BLOCK] from [N, BLOCK] and [N or 1, FEATURES]."""
        skip, encode, code, decode, out = self.weights
        hidden = torch.tanh(torch.addmm(features @ encode[BLOCK:], blocks, encode[:BLOCK]))
        back = torch.tanh(torch.addmm(features @ decode[CODE:], hidden @ code, decode[:CODE]))
        return torch.addmm(skip * blocks, back, out)

    def fitted(self, pairs: Tensor) -> Net:
        """The net after a lesson.

        s is the mean of the lessons' least squares; what the rest adds to it moves by Adam until the pairs that are
        held out are predicted worse.

        Args:
            pairs: [N, 2 BLOCK + FEATURES] inputs, targets and features.
        """
        held_out = torch.arange(len(pairs), device=pairs.device) % 4 == 3
        fit, check = (part.split([BLOCK, BLOCK, FEATURES], 1) for part in (pairs[~held_out], pairs[held_out]))
        skip = (fit[0] * fit[1]).sum() / not_zero(fit[0].square().sum())
        skip = (self.weights[0] * self.lessons + skip) / (self.lessons + 1)
        return Net(_best((skip, *self.weights[1:]), fit, check), self.lessons + 1)


def identity(seed: int, like: Tensor) -> Net:
    """A net whose encoder is drawn, and whose decoder adds 0.

    Args:
        like: any tensor of its type, on its device.
    """
    draw = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(_INITIAL_STREAM,))))
    shapes = ((BLOCK + FEATURES, HIDDEN), (HIDDEN, CODE), (CODE + FEATURES, HIDDEN))
    drawn = [torch.from_numpy(draw.standard_normal(s) / math.sqrt(s[0])).to(like) for s in shapes]
    return Net((like.new_ones(()), *drawn, like.new_zeros(HIDDEN, BLOCK)))


def not_zero(size: Tensor) -> Tensor:
    """1 in place of 0."""
    return torch.where(size > 0, size, 1.0)


def _best(start: tuple[Tensor, ...], fit: tuple[Tensor, ...], check: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Weights that predict best what is held out, at the start or on the way; s stays as it is."""
    moving = [w.detach().clone().requires_grad_() for w in start[1:]]
    optimizer = torch.optim.Adam(moving, lr=RATE)
    best, since = start, 0
    least = _error(start, check) if len(check[0]) else None
    for iteration in range(1, ITERATIONS + 1):
        with torch.enable_grad():
            optimizer.zero_grad()
            _error((start[0], *moving), fit).backward()
        optimizer.step()
        if least is None or iteration % LOOK_EVERY:
            continue
        now = (start[0], *(w.detach() for w in moving))
        reached, since = _error(now, check), since + 1
        if reached < least:
            best, least, since = tuple(w.clone() for w in now), reached, 0
        elif since == PATIENCE:
            break
    return best


def _error(weights: tuple[Tensor, ...], pairs: tuple[Tensor, ...]) -> Tensor:
    inputs, targets, features = pairs
    return (Net(weights)(inputs, features) - targets).square().mean()
