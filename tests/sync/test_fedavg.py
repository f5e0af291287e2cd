from __future__ import annotations

import numpy as np
import torch
from torch import nn

from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.replicas import Client, Replica
from hpclbfl.sync.bsp import BulkSynchronous
from hpclbfl.sync.fedavg import FederatedAveraging, average, average_optimizer_states, averaging_weights


def test_decisions() -> None:
    fedavg = FederatedAveraging(local_steps=3)
    assert [fedavg.averages(step, False) for step in range(1, 8)] == [False, False, True, False, False, True, False]
    assert not fedavg.shared(1)
    assert [step for step in range(1, 10) if fedavg.needs_vote(step)] == [3, 6, 9]
    assert [step for step in range(1, 201) if FederatedAveraging(1000).needs_vote(step)] == [50, 100, 150, 200]
    assert BulkSynchronous().shared(1) and not BulkSynchronous().averages(1, False)


def test_weights_by_samples_and_uniform() -> None:
    samples = np.array([10, 30, 0, 60])
    np.testing.assert_allclose(averaging_weights(samples, "samples"), [0.1, 0.3, 0.0, 0.6])
    np.testing.assert_allclose(averaging_weights(samples, "uniform"), [1 / 3, 1 / 3, 0, 1 / 3])


def test_average_by_hand() -> None:
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([5.0, -2.0])
    mean = average([first, second], [0.25, 0.75], LocalCommunicator(), "x", torch.empty(2))
    assert mean.tolist() == [4.0, -1.0]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_replica_lays_parameters_and_buffers_flat() -> None:
    template = net()
    replica = Replica(template)
    # 6 weights, 2 biases, 2 + 2 of BatchNorm, then 2 running means and 2 running variances.
    assert replica.state.tolist()[-4:] == [0, 0, 1, 1]
    assert replica.state.numel() == 16 and replica.buffers.numel() == 4
    replica.state.fill_(7)
    assert all((p == 7).all() for p in replica.module.parameters())
    assert (replica.module[1].running_var == 7).all()  # type: ignore[index]
    assert not (template[0].weight == 7).any()  # type: ignore[index]
    replica.module(torch.randn(4, 3))
    assert (replica.buffers != 7).all()


def test_replicas_share_parameters_but_not_buffers() -> None:
    template = net()
    first = Replica(template)
    second = Replica(template, parameters_of=first)
    assert all(a is b for a, b in zip(first.parameters, second.parameters, strict=True))
    second.module(torch.randn(4, 3))
    assert second.buffers.tolist() != [0, 0, 1, 1]
    assert first.buffers.tolist() == [0, 0, 1, 1]
    assert first.digest() == second.digest()


def test_momentum_is_averaged_by_weight() -> None:
    clients = []
    for client in range(2):
        replica = Replica(net())
        optimizer = torch.optim.SGD(replica.parameters, lr=0.1, momentum=0.9)
        for parameter in replica.parameters:
            parameter.grad = torch.full_like(parameter, 1.0 + 3 * client)
        optimizer.step()
        clients.append(Client(client, replica, optimizer, torch.amp.GradScaler("cpu", enabled=False)))
    average_optimizer_states(clients, [0.75, 0.25], LocalCommunicator())
    for client_ in clients:
        for parameter in client_.replica.parameters:
            # 0.75 * 1 + 0.25 * 4
            torch.testing.assert_close(
                client_.optimizer.state[parameter]["momentum_buffer"], torch.full_like(parameter, 1.75)
            )
