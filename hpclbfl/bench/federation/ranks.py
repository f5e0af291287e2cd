"""On MPI ranks: this package's federated averaging, and a plain loop over the clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpclbfl.algorithms.rank import clients_of_rank
from hpclbfl.bench.federation.work import Rounds, Work
from hpclbfl.bench.ranks import Task, run
from hpclbfl.bench.training import IMAGES, Training, make_job
from hpclbfl.comm.base import Communicator
from hpclbfl.comm.engines import communicator
from hpclbfl.config.sections import CommConfig
from hpclbfl.core.lean_torch import defer_compiler


def measure(task: Task) -> dict[str, Any]:
    """Times of the rounds."""
    if task.variant != "loop":
        # As the command line does.
        defer_compiler()
    engine = "horovod" if task.variant == "horovod" else "mpi"
    comm = communicator(CommConfig.model_validate({"engine": engine}))
    rounds = Rounds(task.begun)
    net = (_plain_loop if task.variant == "loop" else _ours)(task, comm, engine, rounds)
    found = rounds.found("mpi4py alone" if task.variant == "loop" else comm.library, net)
    comm.barrier()
    comm.close()
    return found


def _ours(task: Task, comm: Communicator, engine: str, rounds: Rounds) -> nn.Module:
    settings = task.settings
    sections: dict[str, Any] = {
        # Not augmented, as for the others.
        "data": {"name": "packed", "path": str(Path(task.scratch) / IMAGES), "in_memory": True},
        "sync": {"kind": "fedavg", "local_epochs": 1},
        "partition": {"kind": "iid"},
        "comm": {"engine": engine},
        # What is logged of each step stays: the gradient's norm and its change.
        "gradients": {},
    }
    images = Path(task.scratch) / IMAGES
    job = make_job(images, settings["model"], settings["batch"], settings["clients"], **sections)
    training = Training(job, comm, task.log(comm))
    steps = settings["samples"] // settings["batch"]
    for _ in range(settings["timed"] + 1):
        for _ in range(steps):
            training.step()
        training.average()
        rounds.end()
    return training.state.mean.module


def _plain_loop(task: Task, comm: Communicator, engine: str, rounds: Rounds) -> nn.Module:
    work = Work(task)
    common, net = work.net(), work.net()
    own = clients_of_rank(work.num_clients, comm.rank, comm.size)
    for _ in range(work.rounds):
        total = torch.zeros_like(_flat(common))
        for client in own:
            net.load_state_dict(common.state_dict())
            work.train(net, client)
            total += _flat(net)
        comm.reduce_(total, "average").wait()
        _fill(common, total / work.num_clients)
        rounds.end()
    return common


def _flat(net: nn.Module) -> torch.Tensor:
    """Parameters and the running statistics of BatchNorm."""
    return torch.cat([value.reshape(-1) for value in net.state_dict().values() if value.is_floating_point()])


def _fill(net: nn.Module, flat: torch.Tensor) -> None:
    begin = 0
    for value in net.state_dict().values():
        if value.is_floating_point():
            value.copy_(flat[begin : begin + value.numel()].view_as(value))
            begin += value.numel()


if __name__ == "__main__":
    run(measure)
