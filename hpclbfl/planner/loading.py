"""Which batch sizes are loaded to measure M_batch (Eq. 3, Fig. 4b), how often, and which of them are fitted.

Loading needs no net, so the paper's batch sizes are measured even where a step with them would take too long.
"""

from __future__ import annotations

from collections.abc import Sequence

BATCHES = (1, 32, 64, 128, 512, 1024)
"""Those of Fig. 4b."""
SURE = 4
"""This many of the smallest are always loaded: the fit needs them."""
LARGE_BYTES = 64 * 10**6
"""Batches with more bytes of uint8 images are loaded only once: decoding them takes long."""


def loaded_sizes(sample_bytes: int, room_bytes: float) -> tuple[list[int], list[int]]:
    """Batch sizes to load, and those that do not fit; both increasing.

    Args:
        sample_bytes: memory of loading per sample.
        room_bytes: memory that is left for it.
    """
    loaded = [b for k, b in enumerate(BATCHES) if k < SURE or b * sample_bytes <= room_bytes]
    return loaded, [b for b in BATCHES if b not in loaded]


def fitted_sizes(loaded: Sequence[int]) -> list[int]:
    """Every second batch size, from 32 on; the others are held out."""
    return list(loaded[1::2])


def load_order(loaded: Sequence[int], image_bytes: int, repetitions: int) -> list[tuple[int, int]]:
    """Pairs of batch size and repetition, in the order in which they are measured."""
    return [(b, r) for r in range(repetitions) for b in loaded if r == 0 or b * image_bytes <= LARGE_BYTES]
