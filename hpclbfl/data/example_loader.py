"""Batches of a set of the user's own on the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hpclbfl.data.examples import ArraySplit, MadeSplit
from hpclbfl.data.on_device import has_room
from hpclbfl.data.packed import IntArray


class ExampleLoader:
    """Batches of one split; arrays for which a GPU has room lie there whole.

    Args:
        split: the samples.
        device, dtype: where batches go, and the type that floating-point numbers become.
    """

    in_memory = True
    """Nothing is gained by asking for a batch early."""

    def __init__(self, split: ArraySplit | MadeSplit, device: torch.device, dtype: torch.dtype) -> None:
        self.split, self._device, self._dtype = split, device, dtype
        self._on_device: tuple[Tensor, Tensor] | None = None
        if isinstance(split, ArraySplit):
            num_bytes = split.inputs.nbytes + split.targets.nbytes
            if has_room(num_bytes, device):
                self._on_device = split.inputs.to(device), split.targets.to(device)
        first = np.zeros(1, np.int64)
        inputs, targets = (self._converted(tensor) for tensor in split.batch(first, first))
        self.input_shape, self.target_shape = tuple(inputs.shape[1:]), tuple(targets.shape[1:])
        self.input_dtype = None if inputs.is_floating_point() else inputs.dtype
        self.target_dtype = None if targets.is_floating_point() else torch.int64
        self.staged_bytes = inputs.nbytes

    def __len__(self) -> int:
        return len(self.split)

    @property
    def sample_text(self) -> str:
        """Shape and type of a sample: `[20] int64`."""
        kind = self._dtype if self.input_dtype is None else self.input_dtype
        return f"{list(self.input_shape)} {str(kind).removeprefix('torch.')}"

    def batch(self, samples: IntArray, passes: IntArray, augment: bool = True) -> tuple[Tensor, Tensor]:
        """Inputs [b, ...] and targets [b, ...] of these samples on the device; whole-number targets are int64.

        Args:
            samples: places in the split, int64 [b]; b may differ at every call.
            passes: the pass that each belongs to, int64 [b]; for batches that are made anew.
            augment: without meaning here.

        Raises:
            DataError: a batch cannot be made.
        """
        if self._on_device is not None:
            places = torch.from_numpy(np.ascontiguousarray(samples, np.int64)).to(self._device)
            inputs, targets = (tensor[places] for tensor in self._on_device)
        else:
            inputs, targets = self.split.batch(samples, passes)
        return self._converted(inputs), self._converted(targets, is_target=True)

    def example(self, count: int) -> Tensor:
        """Inputs of the first samples, as many as are asked for, on the device."""
        samples = np.arange(count, dtype=np.int64) % len(self)
        return self.batch(samples, np.zeros_like(samples))[0]

    def prefetch(self, samples: IntArray, passes: IntArray, augment: bool = True) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""

    def _converted(self, tensor: Tensor, is_target: bool = False) -> Tensor:
        if tensor.is_floating_point():
            return tensor.to(self._device, self._dtype)
        return tensor.to(self._device, torch.int64 if is_target else tensor.dtype)
