"""The largest values of each layer, by magnitude, with their places.

D. Alistarh et al., "The Convergence of Sparsified Gradient Methods", NeurIPS 2018; Y. Lin et al., "Deep Gradient
Compression", ICLR 2018. A contraction: |v - C(v)|^2 <= (1 - k / n) |v|^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hpclbfl.comm.compression import Key, align, kept
from hpclbfl.config.components import COMPRESSORS
from hpclbfl.config.sections.compression import SparseConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from hpclbfl.core.lazy import lazy

    torch = lazy("torch")

_SAMPLE = 1 << 13
"""Values of a layer whose order tells roughly from which magnitude on it has k."""
_MARGIN = 1.25
"""So many more values than k are looked at, and a constant number."""
_PLACE_BYTES = 4


class TopKConfig(SparseConfig):
    """The largest values of each parameter, and their places."""


@COMPRESSORS.register("topk", TopKConfig)
def make_topk(config: TopKConfig) -> TopK:
    """See the module."""
    return TopK(config.ratio)


@dataclass(frozen=True)
class TopK:
    """A `hpclbfl.comm.compression.Codec`: places (int32), then values.

    Among equal magnitudes at the limit the first ones are taken.
    """

    ratio: float

    def at(self, level: float) -> TopK:
        """The same with another ratio."""
        return replace(self, ratio=level)

    def size(self, num_values: int, itemsize: int) -> int:
        """See `Codec`."""
        count = kept(num_values, self.ratio)
        return align(count * _PLACE_BYTES) + count * itemsize

    def encode(self, values: Tensor, key: Key) -> Tensor:
        """See `Codec`."""
        count = kept(values.numel(), self.ratio)
        chosen = largest(values, count)
        payload = torch.zeros(self.size(values.numel(), values.element_size()), dtype=torch.uint8, device=values.device)
        payload[: count * _PLACE_BYTES].view(torch.int32).copy_(chosen)
        payload[align(count * _PLACE_BYTES) :].view(values.dtype).copy_(values[chosen])
        return payload

    def decode_(self, payload: Tensor, out: Tensor, key: Key, alpha: float = 1.0) -> None:
        """See `Codec`."""
        count = kept(out.numel(), self.ratio)
        chosen = payload[: count * _PLACE_BYTES].view(torch.int32)
        out.index_add_(0, chosen, payload[align(count * _PLACE_BYTES) :].view(out.dtype), alpha=alpha)


def largest(values: Tensor, count: int) -> Tensor:
    """[count] places of the largest magnitudes, int64; among equal ones at the limit the first."""
    magnitudes = values.abs()
    candidates = None
    if not values.is_cuda and values.numel() > 4 * _SAMPLE and count * 4 < values.numel():
        candidates = _candidates(magnitudes, count)
    if candidates is None:
        limit = nth_largest(magnitudes, count)
        above, equal = _where(magnitudes > limit), _where(magnitudes == limit)
    else:
        among = magnitudes[candidates]
        limit = nth_largest(among, count)
        above, equal = candidates[among > limit], candidates[among == limit]
    if limit.isnan():
        return torch.arange(count, device=values.device)
    return torch.cat([above, equal[: count - above.numel()]])


def _candidates(magnitudes: Tensor, count: int) -> Tensor | None:
    """Places of all values from a limit on that a sample tells: at least `count`; None: the limit was too high.

    Exact zeros, of which gradients of convolutions may be full, are left out where there are enough others: a
    partition of many equal values takes thirty times as long as of unequal ones.
    """
    size = magnitudes.numel()
    stride = size // _SAMPLE
    # Else the sample might see one place of every kernel alone.
    while math.gcd(stride, size) > 1:
        stride += 1
    sample = magnitudes[::stride]
    wanted = min(sample.numel(), int(_MARGIN * count / size * sample.numel()) + 16)
    limit = nth_largest(sample, wanted)
    found = _where(magnitudes >= limit if limit > 0 else magnitudes > 0)
    return found if found.numel() >= count else None


def nth_largest(values: Tensor, count: int) -> Tensor:
    """The smallest of so many largest values, 0-d; NaN counts as the largest."""
    if values.is_cuda:
        return values.topk(count).values[-1]
    import numpy as np

    # torch.topk sorts, which takes tens of times as long.
    return torch.from_numpy(np.partition(values.numpy(), len(values) - count))[len(values) - count]


def _where(chosen: Tensor) -> Tensor:
    """[k] places of what is true, ascending."""
    if chosen.is_cuda:
        return chosen.nonzero().view(-1)
    import numpy as np

    return torch.from_numpy(np.flatnonzero(chosen.numpy()))
