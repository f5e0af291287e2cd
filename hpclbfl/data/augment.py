"""Augmentation, keyed by (seed, pass, sample): never by rank, client or place in the batch.

Random numbers come from a counter-based hash (splitmix64, Steele et al. 2014, "Fast Splittable Pseudorandom Number
Generators"), vectorised over the batch, so that a sample's crop does not depend on which others share its batch.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hpclbfl.data.packed import IntArray

WordArray = NDArray[np.uint64]
PixelArray = NDArray[np.uint8]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_AREA_SHARE = (0.08, 1.0)
_LOG_ASPECT = (math.log(3 / 4), math.log(4 / 3))
_CROP_ATTEMPTS = 10
_RESIZE_RATIO = 256 / 224


def random_words(seed: int, samples: IntArray, passes: IntArray, count: int) -> WordArray:
    """`count` random 64-bit words per sample, uint64 [b, count], a function of (seed, pass, sample) alone."""
    with np.errstate(over="ignore"):
        state = _mix(np.full(len(samples), seed % 2**64, np.uint64) + _GOLDEN)
        state = _mix(state + passes.astype(np.uint64) + _GOLDEN)
        state = _mix(state + samples.astype(np.uint64) + _GOLDEN)
        return _mix(state[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)


def _mix(words: WordArray) -> WordArray:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _below(words: WordArray, bound: int) -> IntArray:
    """Words -> integers in [0, bound); the bias is under bound / 2^32."""
    return (((words >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)


def _uniform(words: WordArray) -> NDArray[np.float64]:
    """Words -> floats in [0, 1)."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def padding(side: int) -> int:
    """Zero padding of `crop_flip` for images of this side, pixels: 4 at 32."""
    return max(1, side // 8)


def crop_flip_offsets(
    samples: IntArray, passes: IntArray, seed: int, height: int, width: int
) -> tuple[IntArray, IntArray, NDArray[np.bool_]]:
    """Per sample: the crop's top and left relative to the image (negative: into the padding), and whether to flip."""
    words = random_words(seed, samples, passes, 3)
    pad_y, pad_x = padding(height), padding(width)
    top = _below(words[:, 0], 2 * pad_y + 1) - pad_y
    left = _below(words[:, 1], 2 * pad_x + 1) - pad_x
    return top, left, (words[:, 2] >> np.uint64(63)).astype(bool)


def crop_flip(
    store: PixelArray,
    samples: IntArray,
    passes: IntArray,
    seed: int,
    out: PixelArray,
    rows: IntArray | None = None,
) -> None:
    """Random crop after zero padding, and horizontal flip, of images in memory.

    Args:
        store: all images, uint8 [N, 3, H, W].
        samples: which of them, int64 [b].
        passes: the pass that each belongs to, int64 [b].
        seed: the job's.
        out: where the batch goes, uint8 [b, 3, H, W].
        rows: where the samples stand in `store`, int64 [b]; None: at their own numbers.
    """
    height, width = store.shape[2:]
    tops, lefts, flips = crop_flip_offsets(samples, passes, seed, height, width)
    # One slice per sample into the preallocated batch: faster than gathering, and needs no padded copy of the store.
    places = samples if rows is None else rows
    crops = zip(places.tolist(), tops.tolist(), lefts.tolist(), flips.tolist(), strict=True)
    for target, (row, top, left, flip) in zip(out, crops, strict=True):
        if flip:
            target = target[:, :, ::-1]
        if top or left:
            target.fill(0)
            y, x = max(top, 0), max(left, 0)
            y_end, x_end = min(top, 0) + height, min(left, 0) + width
            target[:, y - top : y_end - top, x - left : x_end - left] = store[row, :, y:y_end, x:x_end]
        else:
            target[:] = store[row]


def fit(image: Image.Image, side: int | None) -> Image.Image:
    """What the net sees of an image when nothing is random: a square of `side` pixels; None: the image as it is.

    Photographs are resized to side * 256 / 224 on their shorter side, and the centre is cut out. Square images that
    are not larger than the target (CIFAR for a net that needs 64 px) fill it whole.
    """
    width, height = image.size
    if side is None or (width, height) == (side, side):
        return image
    if width == height and width <= side:
        return image.resize((side, side), Image.Resampling.BILINEAR)
    scale = round(side * _RESIZE_RATIO) / min(width, height)
    width, height = max(side, round(width * scale)), max(side, round(height * scale))
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def resized_crop_flip(image: Image.Image, sample: int, pass_: int, seed: int, side: int) -> Image.Image:
    """A random part (area 0.08 to 1, aspect 3/4 to 4/3) resized to a square of `side` pixels, and horizontal flip.

    Ten attempts to find a part that fits, as is customary; then the whole image, cut to an aspect that is allowed.
    """
    words = random_words(seed, np.array([sample]), np.array([pass_]), 2 * _CROP_ATTEMPTS + 3)[0]
    draws = _uniform(words).tolist()
    width, height = image.size
    for attempt in range(_CROP_ATTEMPTS):
        area = width * height * (_AREA_SHARE[0] + (_AREA_SHARE[1] - _AREA_SHARE[0]) * draws[2 * attempt])
        aspect = math.exp(_LOG_ASPECT[0] + (_LOG_ASPECT[1] - _LOG_ASPECT[0]) * draws[2 * attempt + 1])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draws[-3] * (width - w + 1)), int(draws[-2] * (height - h + 1))
            break
    else:
        w = max(1, min(width, round(height * math.exp(_LOG_ASPECT[1]))))
        h = max(1, min(height, round(width / math.exp(_LOG_ASPECT[0]))))
        left, top = (width - w) // 2, (height - h) // 2
    image = image.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))
    return ImageOps.mirror(image) if draws[-1] < 0.5 else image
