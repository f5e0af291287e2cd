"""The sign of each value, and a layer's mean magnitude.

S. P. Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML 2019: C(p) =
(|p|_1 / n) sign(p), which without error feedback need not converge. A contraction: |v - C(v)|^2 = |v|^2 - |v|_1^2 / n.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpclbfl.comm.compression import Key
from hpclbfl.config.components import COMPRESSORS
from hpclbfl.config.sections.compression import FeedbackConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    from hpclbfl.core.lazy import lazy

    torch = lazy("torch")

_BITS = 8
_SCALE_BYTES = 8


class SignSgdConfig(FeedbackConfig):
    """The sign of each value, times the mean magnitude of its parameter."""


class Signs:
    """A `hpclbfl.comm.compression.Codec`: the mean magnitude (float64), then a bit for each value."""

    def size(self, num_values: int, itemsize: int) -> int:
        """See `Codec`."""
        return _SCALE_BYTES + -(-num_values // _BITS)

    def encode(self, values: Tensor, key: Key) -> Tensor:
        """See `Codec`."""
        # In the values' own type, so that what is subtracted is what is sent.
        scale = values.abs().mean().double().view(1)
        return torch.cat([scale.view(torch.uint8), pack(values >= 0)])

    def decode_(self, payload: Tensor, out: Tensor, key: Key, alpha: float = 1.0) -> None:
        """See `Codec`."""
        scale = payload[:_SCALE_BYTES].view(torch.float64).to(out.dtype) * alpha
        # 0 and 1 to -scale and scale; torch.where takes twenty times as long.
        out.add_(unpack(payload[_SCALE_BYTES:], out.numel()).to(out.dtype).mul_(2.0).sub_(1.0).mul_(scale))


@COMPRESSORS.register("signsgd", SignSgdConfig)
def make_signs(config: SignSgdConfig) -> Signs:
    """See the module."""
    return Signs()


def pack(bits: Tensor) -> Tensor:
    """[n] truth values to [ceil(n / 8)] bytes, the first in the highest bit."""
    if not bits.is_cuda:
        import numpy as np

        return torch.from_numpy(np.packbits(bits.numpy()))
    missing = -bits.numel() % _BITS
    rows = torch.cat([bits, bits.new_zeros(missing)]).view(-1, _BITS).to(torch.uint8)
    return (rows << _shifts(bits.device)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, count: int) -> Tensor:
    """The reverse of `pack`: [count] zeros and ones, uint8."""
    if not packed.is_cuda:
        import numpy as np

        return torch.from_numpy(np.unpackbits(packed.numpy(), count=count))
    return ((packed.view(-1, 1) >> _shifts(packed.device)) & 1).view(-1)[:count]


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(_BITS - 1, -1, -1, dtype=torch.uint8, device=device)
