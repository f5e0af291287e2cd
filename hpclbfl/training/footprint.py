"""What a batch takes of the host's memory, found out with a tiny one, so that a huge one is refused before it is taken.

A kernel that runs out of memory kills the process that asks for it, which can say nothing any more. On a GPU too large
a batch is an error like others, and what counts here is the memory in which its samples are put together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hpclbfl.core.errors import ConfigError, EnvironmentFault
from hpclbfl.core.memory import free_memory
from hpclbfl.data.loaders import BatchLoader

WORK = 1.2
"""Of what a step saves for the backward pass: so many times as much, and a largest layer, are its peak, about."""
RESERVE = 0.08
"""Part of the free memory that is left alone."""
EVALUATION_PART = 0.5
"""Of the free memory that an evaluation may take."""
PRODUCT = 4
"""What a product with the Hessian takes: so many times as much as a step, at most."""
_TINY = (2, 4)


@dataclass(frozen=True)
class Footprint:
    """Host memory of batches on this rank, bytes."""

    fixed: int
    """Of a step, whatever its batch: the gradients."""
    per_sample: int
    """Of a step: its inputs, what the forward pass saves for the backward pass, and room to work in."""
    per_evaluated: int
    """Of each sample that is evaluated: its input, and the largest layer's input and output."""
    local_size: int = 1
    """Ranks that share the memory."""

    def check_step(self, batch: int) -> None:
        """Refuse a step with so many samples of a client where the memory that is free cannot hold it.

        Raises:
            EnvironmentFault: one line with what it needs, what there is, and the largest batch that fits.
        """
        free, need = self._free(), self.fixed + batch * self.per_sample
        if free is None or need <= free:
            return
        fits = max(0, free - self.fixed) // self.per_sample
        advice = f"the largest batch that fits is about {fits}" if fits else "not even one sample fits"
        each = f" for each of {self.local_size} ranks" if self.local_size > 1 else ""
        raise EnvironmentFault(
            f"batching: a step of {batch} samples needs about {size_text(need)} of memory, {size_text(free)} are free"
            f"{each}: {advice}"
        )

    def evaluation_batch(self, wanted: int) -> int:
        """The largest batch, up to the one that is wanted, with which an evaluation keeps within its part of memory."""
        free = self._free()
        return wanted if free is None else max(1, min(wanted, int(EVALUATION_PART * free / self.per_evaluated)))

    def product_batch(self, wanted: int, reserved: int = 0) -> int:
        """The largest batch, up to the one that is wanted, that a product with the Hessian has memory for.

        Args:
            reserved: bytes of the node's memory that something else will take.
        """
        free = self._free()
        if free is None:
            return wanted
        left = free - reserved // self.local_size - PRODUCT * self.fixed
        return max(1, min(wanted, left // (PRODUCT * self.per_sample)))

    def check_vectors(self, count: int, size: int) -> None:
        """Refuse to hold so many vectors of `size` bytes each on one rank where the node's memory cannot.

        Raises:
            EnvironmentFault: one line with what they need, what there is, and how many fit.
        """
        free = self._free()
        if free is None or count * size <= free * self.local_size:
            return
        free *= self.local_size
        raise EnvironmentFault(
            f"sharpness: {count} vectors as long as the net has parameters need about {size_text(count * size)} of "
            f"memory, {size_text(free)} are free, which {free // size} fit into: give a smaller --basis, --lanczos or "
            "--top"
        )

    def _free(self) -> int | None:
        """What a batch may take; None: unknown."""
        try:
            return int((1 - RESERVE) * free_memory()) // self.local_size
        except ConfigError:
            # A system that does not tell.
            return None


def measure(net: nn.Module, loader: BatchLoader, autocast: Callable[[], AbstractContextManager[object]]) -> Footprint:
    """Run tiny batches forward and count what they would leave behind; changes neither the net nor random numbers."""
    like = next(net.parameters())
    # As it is put together; on the CPU also as the net takes it, images of float64 made by way of themselves.
    sample = loader.staged_bytes
    gradients = sum(p.numel() * p.element_size() for p in net.parameters())
    if like.device.type != "cpu":
        return Footprint(0, sample, sample)
    sample += math.prod(loader.input_shape) * max(4, like.element_size())
    few, more = (_forward(net, loader.example(n), autocast) for n in _TINY)
    saved = max(0, more.saved - few.saved) // (_TINY[1] - _TINY[0])
    largest = more.largest // _TINY[1]
    return Footprint(gradients, sample + int(WORK * saved) + largest, sample + largest)


def smallest_batch(net: nn.Module, loader: BatchLoader) -> int:
    """1, or 2 where BatchNorm would have one value per channel; changes neither the net nor random numbers."""
    try:
        with _tried(net) as buffers, torch.no_grad():
            torch.func.functional_call(net, buffers, (loader.example(1),))
    except ValueError:
        return 2
    return 1


@contextmanager
def _tried(net: nn.Module) -> Iterator[dict[str, Tensor]]:
    """A net in training mode, with buffers to take in place of its own, whose statistics a pass would move."""
    was_training = net.training
    try:
        with torch.random.fork_rng(devices=[]):
            net.train()
            yield {name: buffer.clone() for name, buffer in net.named_buffers()}
    finally:
        net.train(was_training)


@dataclass
class _Counted:
    """Bytes of a forward pass."""

    saved: int = 0
    """For the backward pass, each storage once; the net's own parameters and buffers left out."""
    largest: int = 0
    """Input and output of the module that has most of both."""


def _forward(net: nn.Module, inputs: Tensor, autocast: Callable[[], AbstractContextManager[object]]) -> _Counted:
    counted = _Counted()
    known = {t.untyped_storage().data_ptr() for t in (*net.parameters(), inputs)}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            counted.saved += storage.nbytes()
        return tensor

    def note(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        tensors = [t for t in (*arguments, output) if isinstance(t, Tensor)]
        counted.largest = max(counted.largest, sum(t.numel() * t.element_size() for t in tensors))

    handles = [module.register_forward_hook(note) for module in net.modules() if not list(module.children())]
    try:
        with _tried(net) as buffers, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            known |= {buffer.untyped_storage().data_ptr() for buffer in buffers.values()}
            with autocast():
                scores = torch.func.functional_call(net, buffers, (inputs,))
            # Until here all that was saved is alive, and no storage is counted for another.
            del scores
    finally:
        for handle in handles:
            handle.remove()
    return counted


def size_text(num_bytes: float) -> str:
    """Bytes as people read them: 1.5 GB, 20 MB."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.3g} {unit}"
    return f"{num_bytes / 1e3:.3g} kB"
