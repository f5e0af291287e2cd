"""A set's images in a GPU's memory: batches are picked and augmented there, to the same pixels as on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpclbfl.data.augment import PixelArray, crop_flip_offsets, padding
from hpclbfl.data.packed import IntArray

_SHARE = 8
"""Images take at most one part in this many of the free memory."""


class DeviceImages:
    """Images and labels of a split on a device.

    Args:
        store: all images, uint8 [N, 3, H, W].
        labels: [N].
    """

    def __init__(self, store: PixelArray, labels: NDArray[Any], device: torch.device) -> None:
        count, channels, height, width = store.shape
        y, x = self._padding = (padding(height), padding(width))
        # With the zeros around them that crops reach into, a batch is one look-up.
        self._padded = torch.zeros(count, channels, height + 2 * y, width + 2 * x, dtype=torch.uint8, device=device)
        self._images = self._padded[:, :, y : y + height, x : x + width]
        self._images.copy_(torch.from_numpy(store))
        self._labels = torch.from_numpy(np.ascontiguousarray(labels, dtype=np.int64)).to(device)
        self._channels = torch.arange(channels, device=device).view(1, channels, 1, 1)

    def pick(self, samples: IntArray) -> tuple[Tensor, Tensor]:
        """The images without augmentation, uint8 [b, 3, H, W], and their labels, int64 [b]."""
        places = self._sent(samples)
        return self._images[places], self._labels[places]

    def pick_crop_flip(self, samples: IntArray, passes: IntArray, seed: int) -> tuple[Tensor, Tensor]:
        """As `pick`, augmented; see `hpclbfl.data.augment.crop_flip`."""
        height, width = self._images.shape[2:]
        tops, lefts, flips = crop_flip_offsets(samples, passes, seed, height, width)
        # Per sample: its place, the rows and the columns of the padded image that it takes, in order.
        numbers = np.empty((len(samples), 1 + height + width), np.int64)
        numbers[:, 0] = samples
        numbers[:, 1 : 1 + height] = (tops + self._padding[0])[:, None] + np.arange(height)
        across = np.arange(width)
        numbers[:, 1 + height :] = (lefts + self._padding[1])[:, None] + np.where(flips[:, None], across[::-1], across)
        places, rows, columns = self._sent(numbers).split((1, height, width), dim=1)
        images = self._padded[places[:, :, None, None], self._channels, rows[:, None, :, None], columns[:, None, None]]
        return images, self._labels[places[:, 0]]

    def _sent(self, numbers: NDArray[np.int64]) -> Tensor:
        """Numbers on the device; the host does not wait for the copy."""
        sent = torch.from_numpy(numbers)
        if self._padded.is_cuda:
            sent = sent.pin_memory()
        return sent.to(self._padded.device, non_blocking=True)


def has_room(num_bytes: int, device: torch.device) -> bool:
    """Whether this many bytes of images may be kept on the device; never on a CPU, which has them already."""
    return device.type == "cuda" and _SHARE * num_bytes <= torch.cuda.mem_get_info(device)[0]
