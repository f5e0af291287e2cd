from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.config.components import LOSSES
from hpclbfl.losses.checked import Loss
from hpclbfl.models import DataSpec
from hpclbfl.training.evaluate import evaluate
from tests.components import config_of


def loss() -> Loss:
    return Loss(config_of(LOSSES, label_smoothing=0.3), DataSpec((6,), 6, target_dtype=torch.int64))


class Fixed:
    """Seven samples whose 'image' is their row of scores."""

    scores = torch.tensor(
        [
            [5.0, 4, 3, 2, 1, 0],
            [5.0, 4, 3, 2, 1, 0],
            [5.0, 4, 3, 2, 1, 0],
            [0.0, 1, 2, 3, 4, 5],
            [0.0, 1, 2, 3, 4, 5],
            [0.0, 1, 2, 3, 4, 5],
            [0.0, 1, 2, 3, 4, 5],
        ],
        dtype=torch.float64,
    )
    labels = torch.tensor([0, 4, 5, 5, 5, 1, 0])

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 7

    def batch(self, samples: np.ndarray, passes: np.ndarray, augment: bool = True) -> tuple[Tensor, Tensor]:
        assert not augment
        self.asked += samples.tolist()
        return self.scores[samples], self.labels[samples]


class Collecting(LocalCommunicator):
    """One rank of several: its sums are kept for adding up by hand."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.sums = torch.zeros(5)

    def reduce_(self, flat: Tensor, name: str, on_chunk=None):  # type: ignore[no-untyped-def]
        self.sums = flat.clone()
        return super().reduce_(flat, name, on_chunk)


class Net(nn.Identity):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_scores_by_hand(batch_size: int) -> None:
    net = Net().train()
    score = evaluate(net, Fixed(), LocalCommunicator(), batch_size, nullcontext(), loss(), True)
    assert score.top1 == pytest.approx(3 / 7)
    # Among the first five: all but labels 5 (first rows) and 0 (last rows).
    assert score.top5 == pytest.approx(5 / 7)
    log_sum = torch.arange(6, dtype=torch.float64).exp().sum().log().item()
    # Scores of the right classes: 5, 1, 0, 5, 5, 1, 0.
    assert score.loss == pytest.approx(log_sum - 17 / 7)
    assert net.training


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_ranks_split_the_samples_without_overlap(size: int) -> None:
    asked: list[int] = []
    total = torch.zeros(5, dtype=torch.float64)
    for rank in range(size):
        images, comm = Fixed(), Collecting(rank, size)
        try:
            evaluate(Net(), images, comm, 2, nullcontext(), loss(), True)
        except ZeroDivisionError:
            # More ranks than samples: this one has none, its sums are zero.
            assert not images.asked
        asked += images.asked
        total += comm.sums
    assert asked == list(range(7))
    assert total.tolist()[1:] == [3, 5, 7, 7]
