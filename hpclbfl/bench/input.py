"""`hpclbfl bench input`: images per second of one thread, whole batches against one image at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpclbfl.bench.findings import Findings
from hpclbfl.bench.turns import Turns
from hpclbfl.config.sections import ImageDataConfig
from hpclbfl.data.loader import Loader
from hpclbfl.data.splits import ArrayImages, Split

VARIANTS = {
    "loader": "ours, whole batches",
    "pil": "PIL transforms, one image at a time",
}
_SIDE, _NUM_CLASSES, _SEED = 32, 10, 0
_PADDING = 4
_SHARE = {"loader": 1.0, "pil": 0.04}
"""Share of the images that a variant loads in a round: both then take a considerable part of a second."""


@dataclass(frozen=True)
class Settings:
    """Settings of the benchmark."""

    rounds: int = 15
    batch: int = 128
    images: int = 50_000
    """Random images of CIFAR's shape, uint8."""
    variants: tuple[str, ...] = tuple(VARIANTS)


def measure(settings: Settings, turns: Turns, debug: bool = False) -> Findings:
    """Run all variants in this process: crop after padding, flip, normalise, into a float32 batch."""
    title = f"Input, one thread: {_SIDE} px, crop and flip, batches of {settings.batch}"
    findings = Findings(title, VARIANTS)
    rng = np.random.default_rng(_SEED)
    pixels = rng.integers(0, 256, (settings.images, _SIDE, _SIDE, 3), dtype=np.uint8)
    labels = rng.integers(0, _NUM_CLASSES, settings.images)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        makers: dict[str, Callable[..., Iterator[int]]] = {"loader": _whole_batches, "pil": _one_by_one}
        streams = {name: makers[name](pixels, labels, settings.batch) for name in settings.variants}
        wanted = {name: max(1, int(_SHARE[name] * settings.images / settings.batch)) for name in streams}
        for stream in streams.values():
            _images_per_s(stream, 1)
        for _, variant in turns(settings.variants, settings.rounds):
            findings.add("images", variant, "images/s", [_images_per_s(streams[variant], wanted[variant])])
    finally:
        torch.set_num_threads(num_threads)
    findings.sort(list(VARIANTS))
    findings.compare("images", "loader", "pil")
    return findings


def _images_per_s(stream: Iterator[int], num_batches: int) -> float:
    begin = time.perf_counter()
    count = sum(next(stream) for _ in range(num_batches))
    return count / (time.perf_counter() - begin)


def _whole_batches(pixels: NDArray[np.uint8], labels: NDArray[np.int64], batch: int) -> Iterator[int]:
    """Endless batches of the training loader; yields their sizes."""
    split = Split.of(ArrayImages(pixels, "random"), labels)
    config = ImageDataConfig(name="random", augment="crop_flip")
    loader = Loader(split, config, train=True, seed=_SEED, device=torch.device("cpu"), dtype=torch.float32)
    number, rng = 0, np.random.default_rng(_SEED)
    while True:
        order = rng.permutation(len(pixels))
        for begin in range(0, len(order), batch):
            samples = order[begin : begin + batch]
            images, _ = loader.batch(samples, np.full(len(samples), number))
            yield len(images)
        number += 1


class _Images(torch.utils.data.Dataset[Any]):
    """One image at a time, as torchvision's sets give them."""

    def __init__(self, pixels: NDArray[np.uint8], labels: NDArray[np.int64], transform: Callable[[Any], Any]) -> None:
        self._pixels, self._labels, self._transform = pixels, labels.tolist(), transform

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        return self._transform(Image.fromarray(self._pixels[index])), self._labels[index]


def _one_by_one(pixels: NDArray[np.uint8], labels: NDArray[np.int64], batch: int) -> Iterator[int]:
    """Endless batches of the usual transforms in the usual DataLoader; yields their sizes."""
    from hpclbfl.core.vision import torchvision

    t = torchvision.transforms
    middle = (0.5, 0.5, 0.5)
    steps = [t.RandomCrop(_SIDE, padding=_PADDING), t.RandomHorizontalFlip(), t.ToTensor(), t.Normalize(middle, middle)]
    loader = torch.utils.data.DataLoader(_Images(pixels, labels, t.Compose(steps)), batch_size=batch, shuffle=True)
    while True:
        for images, _ in loader:
            yield len(images)
