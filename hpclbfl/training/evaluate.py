"""Exact evaluation, split over the ranks: every sample once; the loss, top-1 and top-5 of classes, a loss's metrics."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hpclbfl.comm.base import Communicator
from hpclbfl.core.errors import ConfigError
from hpclbfl.losses.checked import Loss, as_full, mean


class Batches(Protocol):
    """Samples of a split by index; a `hpclbfl.data.loaders.BatchLoader` is one."""

    def __len__(self) -> int: ...

    def batch(
        self, samples: NDArray[np.int64], passes: NDArray[np.int64], augment: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Inputs [b, ...] and targets [b, ...] on the device."""


@dataclass(frozen=True)
class Score:
    """Means over a split."""

    loss: float
    """By default cross-entropy without label smoothing, nats."""
    top1: float
    """Fraction of samples right at first; NaN: they have no classes."""
    top5: float
    """Fraction of samples right among the first five; NaN: they have no classes."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the loss, by name."""

    @property
    def text(self) -> str:
        """For people: `top-1 93.1 %`, or `loss 1.234, accuracy 0.512`."""
        first = f"loss {self.loss:.4g}" if math.isnan(self.top1) else f"top-1 {100 * self.top1:.1f} %"
        return ", ".join([first, *(f"{name} {value:.4g}" for name, value in self.metrics.items())])


def share_of_rank(count: int, comm: Communicator) -> range:
    """The contiguous share of so many samples that this rank looks at; the ranks' shares cover all, once."""
    return range(*(count * (comm.rank + k) // comm.size for k in (0, 1)))


@torch.no_grad()
def evaluate(
    module: nn.Module,
    batches: Batches,
    comm: Communicator,
    batch_size: int,
    autocast: AbstractContextManager[object],
    loss: Loss,
    has_classes: bool,
) -> Score:
    """Score a net in evaluation mode; ranks take contiguous slices and their sums are summed.

    With fewer than five classes top-5 is over all of them. The mode of the net is put back.

    Args:
        loss: the job's.
        has_classes: whether each sample's target is its class.
    """
    share = share_of_rank(len(batches), comm)
    sums: Tensor | None = None
    names: tuple[str, ...] | None = None
    was_training = module.training
    module.eval()
    with autocast:
        for first in range(0, len(share), batch_size):
            samples = np.array(share[first : first + batch_size])
            inputs, targets = batches.batch(samples, np.zeros_like(samples), augment=False)
            outputs = as_full(module(inputs))
            metrics = loss.metrics(outputs, targets)
            names = _same(names, tuple(metrics))
            top1, top5 = _right(outputs, targets) if has_classes else (math.nan, math.nan)
            total = loss.evaluate(outputs, targets)
            counts = (top1, top5, len(targets), loss.count(targets))
            values = [total, *(torch.as_tensor(n, device=total.device) for n in counts), *metrics.values()]
            batch = torch.stack([value.double() for value in values])
            sums = batch if sums is None else sums + batch
    module.train(was_training)
    if loss.has_metrics:
        # A rank without samples has seen none.
        for other in comm.allgather(names):
            names = _same(names, other)
    if sums is None:
        device = next(module.parameters()).device
        sums = torch.zeros(5 + len(names or ()), dtype=torch.float64, device=device)
    comm.reduce_(sums, "evaluation").wait()
    total_loss, right, right5, num_samples, num_terms, *others = sums.tolist()
    means = {name: mean(value, num_terms) for name, value in zip(names or (), others, strict=True)}
    final = mean(total_loss, num_terms)
    return Score(final, right / num_samples, right5 / num_samples, loss.summary(final, means))


def _right(outputs: Any, targets: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """How many samples are right at first and among the first five; NaN where outputs are no scores of classes."""
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        return math.nan, math.nan
    best = outputs.topk(min(5, outputs.shape[1]), dim=1).indices == targets[:, None]
    return best[:, 0].sum(), best.any(dim=1).sum()


def _same(names: tuple[str, ...] | None, others: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The names of metrics, which are the same for every batch."""
    if names is not None and others is not None and names != others:
        raise ConfigError(f"loss: metrics gives {', '.join(names)} for one batch and {', '.join(others)} for another")
    return others if names is None else names
