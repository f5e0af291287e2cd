"""How much a job's compressor sends, from the sizes of the parameters alone: for predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hpclbfl.comm.compression import Layer, align
from hpclbfl.config.components import COMPRESSORS
from hpclbfl.config.sections.compression import CompressionConfig


class Volume(NamedTuple):
    """What one reduction sends, where every rank has one client."""

    ring_bytes: float
    """A ring allreduce of so many bytes takes as long."""
    gathered_bytes: float = 0.0
    """Of each client's payload, where they are gathered if that sends less; 0: they are not."""

    def on(self, num_ranks: int) -> float:
        """Bytes of which a ring allreduce over so many ranks sends as much."""
        return min(self.ring_bytes, num_ranks / 2 * self.gathered_bytes) if self.gathered_bytes else self.ring_bytes


def volume_of(
    config: CompressionConfig | None, shapes: Sequence[tuple[int, ...]], itemsize: int, num_clients: int
) -> Volume:
    """Of a job's reductions at the level that its section states; without a compressor, all of it.

    Args:
        shapes: of the parameters that are trained.
        itemsize: bytes of a number.
        num_clients: C.
    """
    layers = layers_of(shapes)
    dense = float(itemsize * sum(layer.size for layer in layers))
    if config is None:
        return Volume(dense)
    made = COMPRESSORS.make(config)
    volume = getattr(made, "volume", None)
    if volume is not None:
        found: Volume = volume(layers, itemsize, num_clients)
        return found
    return Volume(dense, float(sum(align(made.size(layer.size, itemsize)) for layer in layers)))


def layers_of(shapes: Sequence[tuple[int, ...]]) -> list[Layer]:
    """Parameters behind each other."""
    layers: list[Layer] = []
    begin = 0
    for number, shape in enumerate(shapes):
        size = 1
        for length in shape:
            size *= length
        layers.append(Layer(number, tuple(shape), begin, size))
        begin += size
    return layers
