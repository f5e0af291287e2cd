"""Reductions in one process, for tests: contributions in, the sum out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hpclbfl.comm.compression import Piece, Setup
from hpclbfl.comm.compression.build import Compression
from hpclbfl.comm.compression.volume import layers_of
from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.config.component_configs import component_config
from hpclbfl.config.components import COMPRESSORS
from hpclbfl.gradients.gradient import Layout

FEEDBACK: dict[str, dict[str, Any]] = {
    "topk": {"kind": "topk", "ratio": 0.2},
    "randomk": {"kind": "randomk", "ratio": 0.2},
    "randomk-own": {"kind": "randomk", "ratio": 0.2, "draw": "own"},
    "powersgd": {"kind": "powersgd", "rank": 1},
    "signsgd": {"kind": "signsgd"},
}
"""Compressors with error feedback."""
ALL: dict[str, dict[str, Any]] = {
    **FEEDBACK,
    "fp16": {"kind": "fp16"},
    "qsgd": {"kind": "qsgd", "bits": 4},
    "topk-plain": {"kind": "topk", "ratio": 0.2, "feedback": False},
    "randomk-plain": {"kind": "randomk", "ratio": 0.2, "draw": "own", "feedback": False},
    "shared-plain": {"kind": "randomk", "ratio": 0.2, "feedback": False},
    "powersgd-plain": {"kind": "powersgd", "rank": 1, "feedback": False},
}
SHAPES = ((6, 5), (4,), (3, 2, 2, 2))


def size_of(shapes: Sequence[tuple[int, ...]]) -> int:
    return sum(layer.size for layer in layers_of(shapes))


class Run:
    """A compressor at work on the clients of a lone process."""

    def __init__(
        self,
        config: Mapping[str, Any],
        shapes: Sequence[tuple[int, ...]] = SHAPES,
        num_clients: int = 2,
        dtype: torch.dtype = torch.float64,
        per_piece: int = 2,
    ) -> None:
        layers = layers_of(shapes)
        groups = [layers[k : k + per_piece] for k in range(0, len(layers), per_piece)]
        pieces = [Piece(number, tuple(group)) for number, group in enumerate(groups)]
        self.flat = torch.full((size_of(shapes),), torch.nan, dtype=dtype)
        self.setup = Setup(LocalCommunicator(), self.flat, pieces, [range(num_clients)], seed=7)
        parameters = [(str(k), torch.nn.Parameter(torch.zeros(shape, dtype=dtype))) for k, shape in enumerate(shapes)]
        made = component_config(COMPRESSORS, dict(config), "job.yaml", "compression")
        self.compression = Compression(made, self.setup, Layout.of(parameters))
        self.reduction = self.compression.reduction
        self.norms: Tensor | None = None

    def step(self, step: int, contributions: Sequence[Tensor]) -> Tensor:
        """The sum of what the clients' contributions are compressed to."""
        self.compression.begin(step)
        for client, own in enumerate(contributions):
            target, adds = self.reduction.target(client)
            if adds:
                target.add_(own)
            else:
                target.copy_(own)
            for piece in self.setup.pieces:
                self.reduction.add(client, piece)
        for piece in self.setup.pieces:
            self.reduction.start(piece)
        self.norms = self.reduction.finish()
        return self.flat.clone()

    def residual(self) -> Tensor:
        """The clients' together."""
        found = [self.reduction.residual(client) for client in self.setup.own]
        return sum((one for one in found if one is not None), torch.zeros_like(self.flat))


def draws(seed: int, count: int, size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, size, dtype=torch.float64, generator=generator))
