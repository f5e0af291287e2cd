"""Batches on the device: decoded, augmented, normalised; of any size at every call.

Images are decoded on the fly by threads (PIL releases the interpreter's lock), never by forked processes, which MPI
does not survive. Batches travel to the device as uint8 and become floating point there; a set in memory for which a GPU
has room lies there whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from hpclbfl.config.sections import ImageDataConfig
from hpclbfl.data.augment import PixelArray, crop_flip
from hpclbfl.data.frames import Frames, Shape, Statistics, statistics
from hpclbfl.data.on_device import DeviceImages, has_room
from hpclbfl.data.packed import IntArray
from hpclbfl.data.splits import Split

_PARTS_PER_WORKER = 4

Triple = tuple[float, float, float]
Decode = Callable[[int, int, PixelArray], None]
"""(sample, pass, out uint8 [3, H, W])"""


class _Staging:
    """A host buffer that batches are assembled in, uint8, pinned where the device is a GPU."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self._shape, self._device, self._pinned = shape, device, device.type == "cuda"
        self._images = torch.empty(0, *shape, dtype=torch.uint8)
        self._labels = torch.empty(0, dtype=torch.int64)
        self._copied: torch.cuda.Event | None = None

    def claim(self, count: int) -> PixelArray:
        """The first `count` images of the buffer, once its last copy to the device is over."""
        if self._copied is not None:
            self._copied.synchronize()
        if count > len(self._images):
            self._images = torch.empty(count, *self._shape, dtype=torch.uint8, pin_memory=self._pinned)
            self._labels = torch.empty(count, dtype=torch.int64, pin_memory=self._pinned)
        view: PixelArray = self._images[:count].numpy()
        return view

    def send(self, labels: IntArray) -> tuple[torch.Tensor, torch.Tensor]:
        """The assembled images, uint8 [b, 3, H, W], and labels, int64 [b], on the device; does not wait for it."""
        count = len(labels)
        if not self._pinned:
            return self._images[:count].to(self._device), torch.from_numpy(labels).to(self._device)
        self._labels[:count] = torch.from_numpy(labels)
        sent = (
            self._images[:count].to(self._device, non_blocking=True),
            self._labels[:count].to(self._device, non_blocking=True),
        )
        self._copied = self._copied or torch.cuda.Event()
        self._copied.record(torch.cuda.current_stream(self._device))
        return sent


class _Pending(NamedTuple):
    """A batch that is being assembled."""

    samples: IntArray
    passes: IntArray
    augment: bool
    staging: _Staging
    parts: list[Future[None]]

    def is_for(self, samples: IntArray, passes: IntArray, augment: bool) -> bool:
        return self.augment == augment and np.array_equal(self.samples, samples) and np.array_equal(self.passes, passes)

    def finish(self) -> None:
        for part in self.parts:
            part.result()

    def discard(self) -> None:
        for part in self.parts:
            part.cancel()
        for part in self.parts:
            if not part.cancelled():
                part.exception()  # Waits until nothing writes into the staging buffer any more.


class Loader:
    """Batches of one split.

    Args:
        split: the images.
        config: the job's `data` section.
        train: whether `data.augment` applies.
        seed: the job's; keys the augmentation with pass and sample.
        device, dtype: where batches go, and as what.
        mean, std: of each channel, pixels in [0, 1]; None: taken from this split.
        shape: of the images, where another split decides it.

    Raises:
        DataError: an image cannot be read, or has another size than the others.
    """

    input_dtype, target_shape, target_dtype = None, (), torch.int64

    def __init__(
        self,
        split: Split,
        config: ImageDataConfig,
        *,
        train: bool,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        mean: Triple | None = None,
        std: Triple | None = None,
        shape: Shape | None = None,
    ) -> None:
        self.split, self._seed, self._dtype = split, seed, dtype
        self._augment = config.augment if train else "none"
        # Those crops are cut out of the images at their own sizes.
        in_memory = False if self._augment == "resized_crop_flip" else config.in_memory
        self._frames = Frames(split, config.resize, in_memory, shape)
        if mean is None or std is None:
            mean, std = statistics(self._frames)
        self.statistics: Statistics = (mean, std)
        # (pixel / 255 - mean) / std, as one multiplication and one addition
        exact = dtype if dtype == torch.float64 else torch.float32
        spread = 1.0 / torch.tensor(std, dtype=torch.float64).view(3, 1, 1)
        self._scale = (spread / 255.0).to(device, exact)
        self._shift = (-torch.tensor(mean, dtype=torch.float64).view(3, 1, 1) * spread).to(device, exact)
        store = self._frames.store
        self._on_device: DeviceImages | None = None
        if store is not None and has_room(store.nbytes, device):
            self._on_device = DeviceImages(store, np.asarray(split.labels), device)
        self._stagings = [_Staging(self.input_shape, device) for _ in range(2)]
        self._pool: ThreadPoolExecutor | None = None
        self._num_parts = 1
        if not self.in_memory and config.workers:
            self._pool = ThreadPoolExecutor(config.workers, thread_name_prefix="decode")
            self._num_parts = config.workers * _PARTS_PER_WORKER
        self._pending: _Pending | None = None

    @property
    def input_shape(self) -> Shape:
        """(3, H, W) of the images in a batch."""
        return self._frames.shape

    @property
    def sample_text(self) -> str:
        """Side of the images: `32 px`."""
        return f"{self.input_shape[1]} px"

    @property
    def staged_bytes(self) -> int:
        """Of an image in uint8, in two buffers."""
        return 2 * math.prod(self.input_shape)

    @property
    def in_memory(self) -> bool:
        """Whether all images were decoded once into memory."""
        return self._frames.in_memory

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, samples: IntArray, passes: IntArray, augment: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """The images and labels of these samples.

        Args:
            samples: places in the split, int64 [b]; b may differ at every call.
            passes: the pass that each belongs to, int64 [b]; keys the augmentation.
            augment: False: as for evaluation, also of the training split.

        Returns:
            Images, dtype [b, 3, H, W], and labels, int64 [b], on the device.

        Raises:
            DataError: an image cannot be read.
        """
        pixels, labels = self._pixels(samples, passes, augment)
        images = pixels.to(self._scale.dtype).mul_(self._scale).add_(self._shift)
        return images.to(self._dtype), labels

    def _pixels(self, samples: IntArray, passes: IntArray, augment: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Augmented images, uint8 [b, 3, H, W], and labels, int64 [b], on the device."""
        if self._on_device is not None:
            if augment and self._augment == "crop_flip":
                return self._on_device.pick_crop_flip(samples, passes, self._seed)
            return self._on_device.pick(samples)
        pending, self._pending = self._pending, None
        if pending is not None and not pending.is_for(samples, passes, augment):
            pending.discard()
            pending = None
        if pending is None:
            pending = self._begin(samples, passes, augment)
        try:
            pending.finish()
        except BaseException:
            pending.discard()
            raise
        return pending.staging.send(self.split.labels[samples])

    def example(self, count: int) -> torch.Tensor:
        """Black images, none of which is decoded, dtype [count, 3, H, W]."""
        return torch.zeros(count, *self.input_shape, dtype=self._dtype, device=self._scale.device)

    def prefetch(self, samples: IntArray, passes: IntArray, augment: bool = True) -> None:
        """Start decoding the next batch; does nothing for images in memory."""
        if self._pool is None:
            return
        if self._pending is not None:
            self._pending.discard()
            self._pending = None
        self._pending = self._begin(samples, passes, augment)

    def close(self) -> None:
        """End the threads."""
        if self._pending is not None:
            self._pending.discard()
            self._pending = None
        if self._pool is not None:
            self._pool.shutdown()

    def _begin(self, samples: IntArray, passes: IntArray, augment: bool) -> _Pending:
        staging = self._stagings[0]
        self._stagings.reverse()
        out = staging.claim(len(samples))
        parts: list[Future[None]] = []
        store = self._frames.store
        if store is not None:
            if augment and self._augment == "crop_flip":
                crop_flip(store, samples, passes, self._seed, out)
            else:
                for target, sample in zip(out, samples.tolist(), strict=True):
                    target[:] = store[sample]
        elif self._pool is None:
            self._decode(samples, passes, augment, out)
        else:
            for part in (slice(start, None, self._num_parts) for start in range(min(self._num_parts, len(samples)))):
                task = self._pool.submit(self._decode, samples[part], passes[part], augment, out[part])
                parts.append(task)
        return _Pending(samples, passes, augment, staging, parts)

    def _decode(self, samples: IntArray, passes: IntArray, augment: bool, out: PixelArray) -> None:
        decode = self._decoder(augment)
        for target, sample, pass_ in zip(out, samples.tolist(), passes.tolist(), strict=True):
            decode(sample, pass_, target)

    def _decoder(self, augment: bool) -> Decode:
        frames, seed = self._frames, self._seed
        if augment and self._augment == "crop_flip":
            return lambda sample, pass_, out: frames.decode_crop_flip(sample, pass_, seed, out)
        if augment and self._augment == "resized_crop_flip":
            return lambda sample, pass_, out: frames.decode_resized_crop_flip(sample, pass_, seed, out)
        return lambda sample, pass_, out: frames.decode(sample, out)
