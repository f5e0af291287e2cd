"""The work of a round, the same for all: every client trains one epoch on its own samples, from the common net on."""

from __future__ import annotations

import copy
import functools
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpclbfl.bench.memory import launch_pss
from hpclbfl.bench.ranks import Task
from hpclbfl.bench.training import IMAGES, make_job
from hpclbfl.data.datasets import load_dataset
from hpclbfl.data.loaders import data_spec, make_loaders
from hpclbfl.models.initial import initial_net

LR, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 5e-4
"""Of `bench.training.make_job`."""


class Work:
    """All clients' samples, ready to be trained on, and the net.

    Args:
        task: of the launch.
    """

    def __init__(self, task: Task) -> None:
        settings = task.settings
        self.num_clients, self.batch = int(settings["clients"]), int(settings["batch"])
        self.samples, self.rounds = int(settings["samples"]), int(settings["timed"]) + 1
        job = make_job(Path(task.scratch) / IMAGES, settings["model"], self.batch, self.num_clients)
        dataset = load_dataset(job.data)
        device = torch.device("cpu")
        train = make_loaders(dataset, job.data, job.seed, device, torch.float32).train
        places = np.arange(len(train))
        self._inputs, self._targets = train.batch(places, np.zeros_like(places), augment=False)
        self._net = initial_net(job.model, data_spec(dataset, train), job.seed, device, torch.float32).train()

    def net(self) -> nn.Module:
        """A copy of the net that the run begins with."""
        return copy.deepcopy(self._net)

    def samples_of(self, client: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a client."""
        own = slice(client * self.samples, (client + 1) * self.samples)
        return self._inputs[own], self._targets[own]

    def train(self, net: nn.Module, client: int) -> None:
        """An epoch of a client, with an optimizer of its own."""
        optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        inputs, targets = self.samples_of(client)
        for images, labels in zip(inputs.split(self.batch), targets.split(self.batch), strict=True):
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()


@functools.cache
def work_of(task: str) -> Work:
    """The work of a task, as JSON, once in each process of a framework that starts processes of its own."""
    torch.set_num_threads(1)
    return Work(Task(**json.loads(task)))


@dataclass
class Rounds:
    """When rounds ended, on the rank that is asked.

    Args:
        begun: when the launch began, s since the epoch.
    """

    begun: float
    _ended: list[float] = field(default_factory=list)

    def end(self) -> None:
        """A round has ended."""
        self._ended.append(time.time())

    def found(self, library: str, net: nn.Module | Mapping[str, Tensor]) -> dict[str, Any]:
        """Seconds from the launch to the end of the first round, of each further one, and the memory of all.

        Args:
            net: the common one in the end, or its state: it tells whether the work was done.
        """
        state = net.state_dict() if isinstance(net, nn.Module) else net
        # Frameworks differ in what they do with the statistics of BatchNorm, on which training does not depend.
        trained = [value for key, value in state.items() if key.endswith(("weight", "bias"))]
        return {
            "norm": float(sum(value.double().square().sum() for value in trained)) ** 0.5,
            "library": library,
            "start_s": self._ended[0] - self.begun,
            "rounds_s": np.diff(self._ended).tolist(),
            "memory_mb": launch_pss() / 1e6,
        }
