"""Exact evaluation, split over the ranks: every sample once, top-1 and top-5."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from hpclbfl.comm.base import Communicator


class Batches(Protocol):
    """Images of a split by index; `hpclbfl.data.loader.Loader` is one."""

    def __len__(self) -> int: ...

    def batch(
        self, samples: NDArray[np.int64], passes: NDArray[np.int64], augment: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Images [b, 3, h, w] and labels [b] on the device."""


@dataclass(frozen=True)
class Score:
    """Means over a split: cross-entropy (nats), fractions of samples right at first and among the first five."""

    loss: float
    top1: float
    top5: float


def share_of_rank(count: int, comm: Communicator) -> range:
    """The contiguous share of so many samples that this rank looks at; the ranks' shares cover all, once."""
    return range(*(count * (comm.rank + k) // comm.size for k in (0, 1)))


@torch.no_grad()
def evaluate(
    module: nn.Module,
    images: Batches,
    comm: Communicator,
    batch_size: int,
    autocast: AbstractContextManager[object],
) -> Score:
    """Score a net in evaluation mode; ranks take contiguous slices and their counts are summed.

    With fewer than five classes top-5 is over all of them. The mode of the net is put back.
    """
    share = share_of_rank(len(images), comm)
    sums: Tensor | None = None
    was_training = module.training
    module.eval()
    with autocast:
        for first in range(0, len(share), batch_size):
            samples = np.array(share[first : first + batch_size])
            x, labels = images.batch(samples, np.zeros_like(samples), augment=False)
            scores = module(x)
            batch = _batch_sums(scores.float() if scores.dtype != torch.float64 else scores, labels)
            sums = batch if sums is None else sums + batch
    module.train(was_training)
    if sums is None:
        sums = torch.zeros(4, dtype=torch.float64, device=next(module.parameters()).device)
    comm.reduce_(sums, "evaluation").wait()
    loss, top1, top5, count = sums.tolist()
    return Score(loss / count, top1 / count, top5 / count)


def _batch_sums(scores: Tensor, labels: Tensor) -> Tensor:
    loss = functional.cross_entropy(scores, labels, reduction="sum")
    best = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
    count = torch.full_like(loss, len(labels))
    return torch.stack([loss, best[:, 0].sum(), best.any(dim=1).sum(), count]).double()
