"""Steps in which a rank's transforms ask for the clients' own gradients; see `hpclbfl.gradients.learning`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hpclbfl.comm.base import Communicator
from hpclbfl.gradients import Context, Metrics
from hpclbfl.gradients.chain import Chain
from hpclbfl.gradients.gradient import Gradient
from hpclbfl.gradients.learning import ClientGradients, OwnGradient


def asking(chains: Sequence[Chain], step: int, vote: Callable[[int], int] | None = None) -> list[int]:
    """Places of the transforms that ask for the coming step's gradients.

    Args:
        chains: of this rank; they have the same transforms.
        step: from 0.
        vote: or-s bits over the ranks; None: the ranks' chains are equal.
    """
    learners = chains[0].learners
    if not learners:
        return []
    states = [chain.current() for chain in chains]
    wanted = [learner.wants(step, [own[place] for own in states]) for place, learner in learners.items()]
    if vote is not None and any(learner.asks_by_state for learner in learners.values()):
        bits = vote(sum(want << bit for bit, want in enumerate(wanted)))
        wanted = [bool(bits >> bit & 1) for bit in range(len(wanted))]
    return [place for place, want in zip(learners, wanted, strict=True) if want]


def teach(
    places: Sequence[int],
    chains: Sequence[Chain],
    comm: Communicator,
    own: Mapping[int, OwnGradient],
    counts: NDArray[np.int64],
    mean: Gradient,
    context: Context,
) -> Metrics:
    """Let these transforms learn; a collective. Returns numbers for the log.

    Args:
        places: see `asking`.
        own, counts, mean: see `ClientGradients`.
    """
    calls = iter(range(1_000_000))

    def sum_(tensor: Tensor) -> None:
        comm.reduce_(tensor.view(-1), f"lesson.{next(calls)}").wait()

    found = ClientGradients(own, counts, mean, sum_, comm.rank)
    metrics: Metrics = {}
    learners = chains[0].learners
    for place in places:
        metrics |= learners[place].learn(found, [chain.current()[place] for chain in chains], context)
    return metrics
