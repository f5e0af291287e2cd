"""A compressor of one's own: TernGrad, which sends -s, 0 or s for each value, at random and without bias.

W. Wen et al., "TernGrad: Ternary Gradients to Reduce Communication in Distributed Deep Learning", NeurIPS 2017. Values
are clipped to a multiple of their standard deviation first, which brings a little bias and less variance.
"""

from __future__ import annotations

import torch

from hpclbfl.comm.compression import Key
from hpclbfl.comm.compression.draws import dither
from hpclbfl.config.sections import CompressionConfig
from hpclbfl.config.sections.base import PositiveFloat

SCALE_BYTES = 8


class TernGrad:
    """Compresses one layer of one client; named in the section `compression`."""

    class Config(CompressionConfig):
        """The keys that a job may give beside `kind`. Derived from `FeedbackConfig` it would have error feedback."""

        clip: PositiveFloat = 2.5
        """Standard deviations beyond which values are clipped."""

    def __init__(self, config: Config) -> None:
        self.clip = config.clip

    def size(self, num_values: int, itemsize: int) -> int:
        """Bytes of a payload: the scale s, and a byte for each value."""
        return SCALE_BYTES + num_values

    def encode(self, values: torch.Tensor, key: Key) -> torch.Tensor:
        """[n] values to bytes. Random numbers are keyed, so that any number of ranks draws the same."""
        bound = self.clip * values.square().mean().sqrt()
        clipped = values.clamp(-bound, bound)
        scale = clipped.abs().max()
        # s with the probability |v| / s.
        sent = torch.sign(clipped) * (dither(values.numel(), key, values.device) * scale < clipped.abs())
        head = scale.double().view(1).view(torch.uint8)
        return torch.cat([head, sent.nan_to_num().to(torch.int8).view(torch.uint8)])

    def decode_(self, payload: torch.Tensor, out: torch.Tensor, key: Key, alpha: float = 1.0) -> None:
        """Add alpha times what a payload stands for."""
        scale = payload[:SCALE_BYTES].view(torch.float64).to(out.dtype)
        out.add_(payload[SCALE_BYTES:].view(torch.int8).to(out.dtype) * scale, alpha=alpha)
