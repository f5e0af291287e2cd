"""Frames: a split's images at the one size that the net sees, uint8, decoded once into memory or on demand."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpclbfl.core.errors import DataError
from hpclbfl.data.augment import PixelArray, crop_flip, fit, resized_crop_flip
from hpclbfl.data.packed import IntArray, evenly_spaced
from hpclbfl.data.splits import Split

_MEMORY_BYTES = 2 * 1024**3
_MEMORY_SIDE = 64
_STATISTICS_IMAGES = 512
_BLOCK_IMAGES = 1024

Shape = tuple[int, int, int]
Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]


class Frames:
    """A split's images, framed by `fit`; keeping them in memory only changes the speed.

    Args:
        split: the images.
        resize: side of the square frames, pixels; None: the files' own size, which must be one for all.
        in_memory: None: when frames are small (64 px, 2 GiB together).
        shape: what the frames must measure, where another split decides it; None: the first image decides.

    Raises:
        DataError: an image cannot be read, or has another size than the first.
    """

    def __init__(
        self, split: Split, resize: int | None = None, in_memory: bool | None = None, shape: Shape | None = None
    ) -> None:
        self.split, self.resize = split, resize
        if shape is None:
            width, height = fit(split.image(0), resize).size
            shape = (3, height, width)
        self.shape = shape
        self.are_small = max(shape[1:]) <= _MEMORY_SIDE and len(split) * int(np.prod(shape)) <= _MEMORY_BYTES
        self.store: PixelArray | None = None
        if self.are_small if in_memory is None else in_memory:
            self.store = np.empty((len(split), *shape), np.uint8)
            for index in range(len(split)):
                self.decode(index, self.store[index])

    @property
    def in_memory(self) -> bool:
        """Whether the images were decoded once into `store`, uint8 [N, 3, H, W]."""
        return self.store is not None

    def decode(self, index: int, out: PixelArray) -> None:
        """Decode one image into `out`, uint8 [3, H, W]."""
        image = fit(self.split.image(index), self.resize)
        self._place(image, index, out)

    def decode_crop_flip(self, index: int, pass_: int, seed: int, out: PixelArray) -> None:
        """Decode one image, cropped at random after padding and flipped; as `augment.crop_flip` does it in memory."""
        frame = np.empty((1, *self.shape), np.uint8)
        self.decode(index, frame[0])
        words_of = np.array([index], dtype=np.int64)
        crop_flip(frame, words_of, np.array([pass_], dtype=np.int64), seed, out[None], rows=np.zeros(1, np.int64))

    def decode_resized_crop_flip(self, index: int, pass_: int, seed: int, out: PixelArray) -> None:
        """Decode one image, a random part of it resized and flipped."""
        image = resized_crop_flip(self.split.image(index), index, pass_, seed, self.shape[1])
        self._place(image, index, out)

    def _place(self, image: Image.Image, index: int, out: PixelArray) -> None:
        width, height = image.size
        if (height, width) != self.shape[1:]:
            raise DataError(
                f"{self.split.describe(index)}: {width}x{height} px, but the first training image has "
                f"{self.shape[2]}x{self.shape[1]}: set data.resize to give all one size"
            )
        out[:] = np.asarray(image).transpose(2, 0, 1)


def statistics(frames: Frames) -> Statistics:
    """Mean and standard deviation of each channel, of pixels scaled to [0, 1].

    Exact for small images; of 512 evenly spaced ones else. The same on every rank, in memory or not.
    """
    count = len(frames.split)
    indices = evenly_spaced(count, count if frames.are_small else _STATISTICS_IMAGES)
    histogram = np.zeros((3, 256), np.int64)
    for begin in range(0, len(indices), _BLOCK_IMAGES):
        block = _block(frames, indices[begin : begin + _BLOCK_IMAGES])
        for channel in range(3):
            histogram[channel] += np.bincount(block[:, channel].ravel(), minlength=256)
    levels = np.arange(256) / 255
    weights: NDArray[np.float64] = histogram / histogram.sum(axis=1, keepdims=True)
    mean = weights @ levels
    variance = np.sum(weights * (levels - mean[:, None]) ** 2, axis=1)
    # A channel without contrast carries no information: keep its scale instead of dividing by 0.
    std = np.where(variance > 0, np.sqrt(variance), 1.0)
    return _triple(mean), _triple(std)


def _block(frames: Frames, indices: IntArray) -> PixelArray:
    if frames.store is not None:
        return frames.store[indices]
    block = np.empty((len(indices), *frames.shape), np.uint8)
    for place, index in enumerate(indices.tolist()):
        frames.decode(index, block[place])
    return block


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    red, green, blue = values.tolist()
    return red, green, blue
