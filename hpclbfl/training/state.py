"""Everything that a run holds on one rank: data, net, clients, optimizers, algorithm, and how far it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpclbfl.algorithms import Synchroniser
from hpclbfl.algorithms.averaging import average, averaging_weights, largest
from hpclbfl.algorithms.replicas import Client, FlatModel
from hpclbfl.batching import BatchPolicy, Plan
from hpclbfl.batching.local_steps import takes_part
from hpclbfl.comm.base import Communicator
from hpclbfl.comm.reducer import GradientReducer
from hpclbfl.config.job import JobConfig
from hpclbfl.config.sections import LocalConfig
from hpclbfl.core.clock import Clock, Mark
from hpclbfl.data.datasets import Dataset
from hpclbfl.data.loaders import BatchLoader
from hpclbfl.data.sampling import Sampler
from hpclbfl.gradients.pipeline import Pipeline
from hpclbfl.losses.checked import Loss
from hpclbfl.optim.extrapolation import Extrapolation
from hpclbfl.optim.schedule import Schedule
from hpclbfl.training import build
from hpclbfl.training.emulate import Emulation
from hpclbfl.training.evaluate import Score
from hpclbfl.training.footprint import Footprint
from hpclbfl.training.times import TimeExchange


@dataclass(frozen=True)
class ClientBatch:
    """What a client trains on in a step."""

    inputs: Tensor
    targets: Tensor
    num_samples: int
    num_terms: int
    """Of the loss; of one that does not count, the samples."""
    loaded: tuple[Mark, Mark]
    """When loading began and ended."""
    host_s: float
    """It took the host so long, seconds."""


@dataclass
class Counters:
    """How far a run is; equal on every rank."""

    positions: NDArray[np.int64]
    """[C] samples that each client processed so far."""
    averaged_at: NDArray[np.int64]
    """[C] the same at the last averaging."""
    averaged_step: int = 0
    """Optimizer steps before the last averaging; 0: there was none. Those that SelSync makes because it knows no change
    yet are not counted."""
    step: int = 0
    """Optimizer steps taken."""
    round: int = 0
    elapsed_s: float = 0.0
    """Training time of this rank, without evaluation."""

    @property
    def num_samples(self) -> int:
        """By all clients."""
        return int(self.positions.sum())

    @property
    def since_averaging(self) -> NDArray[np.int64]:
        """[C] samples of each client since the last averaging."""
        return self.positions - self.averaged_at


@dataclass
class TrainState:
    """One rank's share of a run."""

    job: JobConfig
    comm: Communicator
    device: torch.device
    dataset: Dataset
    train: BatchLoader
    test: BatchLoader
    loss: Loss
    sampler: Sampler
    plan: Plan
    """Batch sizes in force."""
    start_sizes: tuple[int, ...]
    """b_c of every client as the run begins, before the policy has its say."""
    policy: BatchPolicy
    policy_state: Any
    """What the policy's next plan depends on."""
    local_steps: NDArray[np.int64] | None
    """[C] steps of each client in a round, where these follow its speed."""
    sync: Synchroniser
    schedule: Schedule
    clients: list[Client]
    """Of this rank; under BSP their replicas share parameters."""
    optimizer: torch.optim.Optimizer | None
    """Of the shared model; None in local training, where every client has its own."""
    reducer: GradientReducer | None
    """Of the shared model's gradients."""
    mean: FlatModel
    """The net that is evaluated: the clients' (virtual) average."""
    autocast: Callable[[], AbstractContextManager[object]]
    loss_scaler: torch.amp.GradScaler
    """Of the shared model; in local training every client has its own."""
    clock: Clock
    pipeline: Pipeline | None
    """Measures gradients and decides their factor."""
    extrapolation: Extrapolation | None
    """Of the points at which clients take their gradients."""
    times: TimeExchange
    emulation: Emulation | None
    """Makes this rank slower than it is."""
    footprint: Footprint
    """Of this rank's batches in memory."""
    notes: tuple[str, ...] = ()
    """What is worth saying as the run begins."""
    loaded: dict[int, ClientBatch] = field(default_factory=dict)
    """Batches that were loaded ahead of a step's passes, by client."""
    counters: Counters = field(init=False)
    score: tuple[int, Score] | None = None
    """Of the newest evaluation on the test split, and the optimizer steps taken before it."""
    pending_votes: int = 0
    """Of this rank, until the next time at which votes are taken."""
    is_broken: Tensor | None = None
    """On a GPU: whether some gradient since the last look was not finite."""

    def __post_init__(self) -> None:
        zeros = np.zeros(len(self.sizes), np.int64)
        self.counters = Counters(positions=zeros.copy(), averaged_at=zeros.copy())

    @property
    def sizes(self) -> tuple[int, ...]:
        """b_c of every client under the plan in force."""
        return self.plan.sizes

    @property
    def sizes_now(self) -> tuple[int, ...]:
        """b_c of every client in the coming step; 0 for one that sits it out."""
        most = self.job.sync.steps_of_fastest
        if self.local_steps is None or most is None:
            return self.sizes
        part = takes_part(self.counters.step % most, self.local_steps, most)
        return tuple(size if takes else 0 for size, takes in zip(self.sizes, part, strict=True))

    @property
    def lr_factor(self) -> float:
        """What the learning rate is multiplied with because B has grown."""
        return self.job.batching.lr_factor(sum(self.sizes) / sum(self.start_sizes))

    @property
    def global_batch_size(self) -> int:
        """B under the plan in force: samples per step, of clients that hold any."""
        return int(self.sampler.counts(self.sizes).sum())

    @property
    def num_train(self) -> int:
        """N, size of the training set."""
        return len(self.dataset.train)

    @property
    def has_classes(self) -> bool:
        """Whether each sample's target is its class, so that answers are right or wrong."""
        return bool(self.dataset.classes) and self.train.target_shape == () and self.train.target_dtype is not None

    @property
    def epoch(self) -> float:
        """Samples so far / N."""
        return self.counters.num_samples / self.num_train

    def check_memory(self) -> None:
        """Refuse batches under the plan in force that this rank's memory cannot hold. Raises EnvironmentFault."""
        counts = self.sampler.counts(self.sizes)
        self.footprint.check_step(max(int(counts[client.id]) for client in self.clients))

    def prefetch_after(self, client: Client) -> None:
        """Begin to decode the batch that this rank needs after this client's, where they are decoded on the fly."""
        if self.train.in_memory:
            return
        index = self.clients.index(client) + 1
        positions = self.counters.positions
        if index == len(self.clients):
            index, positions = 0, positions + self.sampler.counts(self.sizes_now)
        samples, passes = self.sampler.take(self.clients[index].id, positions, self.sizes_now)
        if len(samples):
            self.train.prefetch(samples, passes)

    def start_local_training(self) -> None:
        """Give every client a copy of the shared model and of its optimizer, for it to train alone."""
        shared = self.optimizer
        if shared is None or self.reducer is None:
            raise RuntimeError("clients train alone already")
        self.reducer.close()
        self.clients = [build.local_client(self.job, c.id, c.replica.module, self.device) for c in self.clients]
        for client in self.clients:
            if client.optimizer is not None:
                # torch would share the tensors of the state that it loads.
                client.optimizer.load_state_dict(copy.deepcopy(shared.state_dict()))
            if self.loss_scaler.is_enabled():
                client.loss_scaler.load_state_dict(self.loss_scaler.state_dict())
        self.optimizer = self.reducer = None
        self.counters.averaged_at = self.counters.positions.copy()

    def average_replicas(self) -> NDArray[np.float64]:
        """Fill `mean` with the clients' weighted average, parameters and BatchNorm buffers.

        Weighted as the job says; while the model is shared, only the buffers are the clients' own, weighted by all
        samples so far. Counters among the buffers are the largest that a client has (see `replicas`).

        Returns:
            [C] the weights; zeros where there was nothing to average.
        """
        counters, comm, mean = self.counters, self.comm, self.mean
        counts = [c.replica.counts for c in self.clients]
        finish = largest(counts, "counts", comm, mean.counts) if counts[0].numel() else None
        if self.optimizer is not None:
            weights = averaging_weights(counters.positions, "samples")
            if mean.buffers.numel():
                buffers = [c.replica.buffers for c in self.clients]
                average(buffers, [weights[c.id] for c in self.clients], comm, "buffers", mean.buffers)
        else:
            config = self.job.sync
            by = config.weights if isinstance(config, LocalConfig) else "samples"
            weights = averaging_weights(counters.since_averaging, by, self.sampler.capacity)
            states = [c.replica.state for c in self.clients]
            if counters.since_averaging.any():
                average(states, [weights[c.id] for c in self.clients], comm, "state", mean.state)
            else:
                # Just averaged: all clients hold the same model.
                mean.state.copy_(states[0])
        if finish is not None:
            mean.set_counts(finish())
        return weights
