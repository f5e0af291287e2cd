from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hpclbfl.algorithms.averaging import average, average_optimizer_states, averaging_weights, largest
from hpclbfl.algorithms.bsp import BulkSynchronous
from hpclbfl.algorithms.fedavg import FedAvgConfig, FederatedAveraging, steps_of_epochs, whole_steps
from hpclbfl.algorithms.flat_model import FlatModel
from hpclbfl.algorithms.local_client import LocalClient
from hpclbfl.algorithms.stepping import Stepper
from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.config.job import parse_job
from hpclbfl.data.sampling import GlobalSampler


def fedavg(local_steps: int) -> FederatedAveraging:
    return FederatedAveraging(FedAvgConfig(kind="fedavg", local_steps=local_steps), 8, 96)


def test_decisions() -> None:
    every_third = fedavg(3)
    assert [every_third.averages(step, 0) for step in range(1, 8)] == [False, False, True, False, False, True, False]
    assert not every_third.shares_model(1)
    assert [step for step in range(1, 10) if every_third.exchanges_flags(step)] == [3, 6, 9]
    assert [step for step in range(1, 201) if fedavg(1000).exchanges_flags(step)] == [50, 100, 150, 200]
    assert BulkSynchronous().shares_model(1)


def test_weights_by_samples_and_uniform() -> None:
    samples = np.array([10, 30, 0, 60])
    np.testing.assert_allclose(averaging_weights(samples, "samples"), [0.1, 0.3, 0.0, 0.6])
    np.testing.assert_allclose(averaging_weights(samples, "uniform"), [1 / 3, 1 / 3, 0, 1 / 3])


def test_weights_by_shards() -> None:
    """n_k / n, whatever was processed: also of a client that has not taken a step since the last averaging."""
    samples, shards = np.array([10, 30, 0, 60]), np.array([20, 5, 15, 0])
    np.testing.assert_allclose(averaging_weights(samples, "shards", shards), [0.5, 0.125, 0.375, 0.0])
    assert averaging_weights(np.zeros(4, np.int64), "shards", shards).tolist() == [0, 0, 0, 0], "nothing to average"
    # Where all samples are dealt out anew, each client may come by all of them.
    dealt = GlobalSampler(num_samples=100, num_clients=4, seed=0).capacity
    assert averaging_weights(samples, "shards", dealt).tolist() == [0.25] * 4


def test_the_largest_count_by_hand() -> None:
    like = torch.zeros(3, dtype=torch.float64)
    rows = [torch.tensor(row, dtype=torch.float64) for row in ([1, 5, -2], [2**53, 4, -3])]
    assert largest(rows, "counts", LocalCommunicator(), like)().tolist() == [2**53, 5, -2]


class OneOfThree(LocalCommunicator):
    """Rank 1 of three; the sums of the others are added by hand."""

    rank, size = 1, 3

    def __init__(self, others: list[list[float]]) -> None:
        self.others = torch.tensor(others, dtype=torch.float64).view(-1)

    def reduce_(self, flat: torch.Tensor, name: str, on_chunk: Any = None) -> Any:
        flat += self.others
        return super().reduce_(flat, name)


def test_the_largest_count_over_ranks_some_of_which_have_no_client() -> None:
    comm, like = OneOfThree([[-1, 7], [0, 0], [-torch.inf, -torch.inf]]), torch.zeros(2, dtype=torch.float64)
    assert largest([torch.tensor([-3.0, 9.0]).double()], "counts", comm, like)().tolist() == [-1, 9]
    assert largest([], "counts", comm, like)().tolist() == [-1, 7]


@pytest.mark.parametrize(
    ("epochs", "steps", "rounded"), [(1, 8.9875, 9), (0.5, 4.49375, 4), (0.01, 0.089875, 1), (160 / 1438, 1.0, 1)]
)
def test_local_epochs_in_steps(epochs: float, steps: float, rounded: int) -> None:
    assert steps_of_epochs(epochs, num_train=1438, global_batch_size=160) == pytest.approx(steps)
    assert whole_steps(steps) == rounded


def test_average_by_hand() -> None:
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([5.0, -2.0])
    mean = average([first, second], [0.25, 0.75], LocalCommunicator(), "x", torch.empty(2))
    assert mean.tolist() == [4.0, -1.0]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_replica_lays_parameters_and_buffers_flat() -> None:
    template = net()
    replica = FlatModel(template)
    # 6 weights, 2 biases, 2 + 2 of BatchNorm, then 2 running means and 2 running variances.
    assert replica.state.tolist()[-4:] == [0, 0, 1, 1]
    assert replica.state.numel() == 16 and replica.buffers.numel() == 4
    replica.state.fill_(7)
    assert all((p == 7).all() for p in replica.module.parameters())
    assert (replica.module[1].running_var == 7).all()  # type: ignore[index]
    assert not (template[0].weight == 7).any()  # type: ignore[index]
    replica.module(torch.randn(4, 3))
    assert (replica.buffers != 7).all()


def test_counts_are_all_buffers_that_are_no_fractions() -> None:
    template = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, momentum=None))
    template.register_buffer("seen", torch.tensor([[True, False]]))
    template.register_buffer("places", torch.tensor([3, -1], dtype=torch.int32))
    replica = FlatModel(template)
    replica.module.train()(torch.randn(4, 2))
    # In the order of the net: its own buffers, then its parts'.
    assert replica.counts.tolist() == [1, 0, 3, -1, 1, 1]
    replica.set_counts(torch.tensor([0, 1, 2**31 - 1, -7, 2**53, 5], dtype=torch.float64))
    state = replica.module.state_dict()
    assert state["seen"].tolist() == [[False, True]] and state["places"].tolist() == [2**31 - 1, -7]
    assert (int(state["0.num_batches_tracked"]), int(state["1.num_batches_tracked"])) == (2**53, 5)
    # The next batch is the sixth: it weighs a sixth.
    before = state["1.running_mean"].clone()
    replica.module[1](torch.full((4, 2), 6.0))  # type: ignore[index]
    torch.testing.assert_close(replica.module[1].running_mean, before + (6.0 - before) / 6)  # type: ignore[index]
    assert FlatModel(nn.Linear(2, 2)).counts.numel() == 0


def test_replicas_share_parameters_but_not_buffers() -> None:
    template = net()
    first = FlatModel(template)
    second = FlatModel(template, parameters_of=first)
    assert all(a is b for a, b in zip(first.parameters, second.parameters, strict=True))
    second.module(torch.randn(4, 3))
    assert second.buffers.tolist() != [0, 0, 1, 1]
    assert first.buffers.tolist() == [0, 0, 1, 1]
    assert first.digest() == second.digest()


def test_momentum_is_averaged_by_weight() -> None:
    clients = []
    values = {"data": {"name": "digits"}, "model": {"name": "resnet8"}, "optimizer": {"lr": 0.1, "momentum": 0.9}}
    job = parse_job(values, "job.yaml")
    for client in range(2):
        replica = FlatModel(net())
        stepper = Stepper(job, replica.parameters, torch.device("cpu"))
        for parameter in replica.parameters:
            parameter.grad = torch.full_like(parameter, 1.0 + 3 * client)
        stepper.step(lr=0.1)
        clients.append(LocalClient(client, replica, stepper, None))
    average_optimizer_states(clients, [0.75, 0.25], LocalCommunicator())
    for client_ in clients:
        for parameter in client_.replica.parameters:
            # 0.75 * 1 + 0.25 * 4
            torch.testing.assert_close(
                client_.optimizer.state[parameter]["momentum_buffer"], torch.full_like(parameter, 1.75)
            )
