"""A set's images in a GPU's memory: batches are picked and augmented there, to the same pixels as on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpclbfl.data.augment import PixelArray, crop_flip_offsets
from hpclbfl.data.packed import IntArray

_SHARE = 8
"""One part in so many of the free memory, at most, is given to images."""


class DeviceImages:
    """Images and labels of a split on a device.

    Args:
        store: all images, uint8 [N, 3, H, W].
        labels: [N].
    """

    def __init__(self, store: PixelArray, labels: NDArray[Any], device: torch.device) -> None:
        self._store = torch.from_numpy(store).to(device)
        self._labels = torch.from_numpy(np.ascontiguousarray(labels, dtype=np.int64)).to(device)
        _, channels, height, width = store.shape
        self._channels = torch.arange(channels, device=device).view(1, channels, 1, 1)
        self._rows = torch.arange(height, device=device)
        self._columns = torch.arange(width, device=device)

    def pick(self, samples: IntArray) -> tuple[Tensor, Tensor]:
        """The images as they are, uint8 [b, 3, H, W], and their labels, int64 [b]."""
        (places,) = self._sent(samples)
        return self._store[places], self._labels[places]

    def pick_crop_flip(self, samples: IntArray, passes: IntArray, seed: int) -> tuple[Tensor, Tensor]:
        """As `pick`, augmented; see `hpclbfl.data.augment.crop_flip`."""
        height, width = self._store.shape[2:]
        tops, lefts, flips = crop_flip_offsets(samples, passes, seed, height, width)
        places, top, left, flip = self._sent(samples, tops, lefts, flips)
        rows = self._rows + top[:, None]
        columns = torch.where(flip[:, None].bool(), width - 1 - self._columns, self._columns) + left[:, None]
        inside_y, inside_x = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
        picked = self._store[
            places[:, None, None, None],
            self._channels,
            rows.clamp(0, height - 1)[:, None, :, None],
            columns.clamp(0, width - 1)[:, None, None, :],
        ]
        return picked.mul_(inside_y[:, None, :, None] & inside_x[:, None, None, :]), self._labels[places]

    def _sent(self, *columns: NDArray[Any]) -> tuple[Tensor, ...]:
        """Numbers per sample on the device, in one copy that the host does not wait for."""
        sent = torch.from_numpy(np.stack([column.astype(np.int64, copy=False) for column in columns]))
        if self._store.is_cuda:
            sent = sent.pin_memory()
        return sent.to(self._store.device, non_blocking=True).unbind()


def has_room(num_bytes: int, device: torch.device) -> bool:
    """Whether so many bytes of images may lie on the device; never on a CPU, where they lie already."""
    return device.type == "cuda" and _SHARE * num_bytes <= torch.cuda.mem_get_info(device)[0]
