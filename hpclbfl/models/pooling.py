"""Adaptive average pooling with a deterministic backward pass on GPUs, as two matrix products."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """torch's, but as matrix products if deterministic algorithms are required on a GPU: torch has none."""

    def forward(self, input: Tensor) -> Tensor:
        """[b, c, h, w] to [b, c, *output_size]."""
        if input.is_cuda and torch.are_deterministic_algorithms_enabled():
            return by_matrices(input, self.output_size)
        return super().forward(input)


def by_matrices(images: Tensor, output_size: int | tuple[int | None, int | None] | None) -> Tensor:
    """Adaptive average pooling as products of [b, c, h, w] with a matrix from each side."""
    height, width = output_size if isinstance(output_size, tuple) else (output_size, output_size)
    h, w = images.shape[-2:]
    # The matrices have the type of the images, also under autocast.
    rows = _means(h, h if height is None else height, images.dtype, images.device)
    columns = _means(w, w if width is None else width, images.dtype, images.device)
    return rows @ images @ columns.T


@lru_cache(maxsize=16)
def _means(size: int, output_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[m, n] = [output_size, size] weights; row i averages the inputs from floor(i n / m) to ceil((i + 1) n / m)."""
    weights = torch.zeros(output_size, size, dtype=dtype)
    for row in range(output_size):
        begin, end = row * size // output_size, -(-(row + 1) * size // output_size)
        weights[row, begin:end] = 1.0 / (end - begin)
    return weights.to(device)


def with_deterministic_pooling(net: nn.Module) -> nn.Module:
    """Replace torch's adaptive average pooling in a model."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            # For a single output pixel torch computes a plain mean, which is deterministic.
            if type(child) is nn.AdaptiveAvgPool2d and child.output_size not in (1, (1, 1)):
                setattr(module, name, AdaptiveAvgPool2d(child.output_size))
    return net
