"""Everything that a run holds on one rank, built from its job: data, net, clients, optimizers, synchroniser."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from hpclbfl import build
from hpclbfl.comm.base import Communicator
from hpclbfl.comm.reducer import GradientReducer
from hpclbfl.config import JobConfig
from hpclbfl.data.datasets import Dataset, load_dataset
from hpclbfl.data.loader import Loader, make_loaders
from hpclbfl.data.sampling import Sampler, make_sampler
from hpclbfl.errors import ConfigError, RunFailed
from hpclbfl.gradients.change import ChangeState
from hpclbfl.gradients.scaler import StepUp
from hpclbfl.optim.schedule import Schedule, make_schedule
from hpclbfl.replicas import Client, Replica, clients_of_rank
from hpclbfl.sections import FedAvgConfig
from hpclbfl.sync import Synchroniser
from hpclbfl.sync.fedavg import average, averaging_weights
from hpclbfl.timing import Clock


@dataclass
class Counters:
    """How far a run is; equal on every rank."""

    positions: NDArray[np.int64]
    """[C] samples that each client processed so far."""
    averaged_at: NDArray[np.int64]
    """[C] the same at the last averaging."""
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
class Experiment:
    """One rank's share of a run."""

    job: JobConfig
    comm: Communicator
    device: torch.device
    dataset: Dataset
    train_images: Loader
    test_images: Loader
    sampler: Sampler
    sizes: list[int]
    """b_c of every client."""
    global_batch_size: int
    """B: samples per step, of clients that hold any."""
    sync: Synchroniser
    schedule: Schedule
    clients: list[Client]
    """Of this rank; under BSP their replicas share parameters."""
    optimizer: torch.optim.Optimizer | None
    """Of the shared model; None in local training, where every client has its own."""
    reducer: GradientReducer | None
    """Of the shared model's gradients."""
    mean: Replica
    """The net that is evaluated: the clients' (virtual) average."""
    autocast: Callable[[], AbstractContextManager[object]]
    loss_scaler: torch.amp.GradScaler
    """Of the shared model; in local training every client has its own."""
    clock: Clock
    transform: StepUp | None
    """Measures gradients and decides their factor."""
    changes: dict[int, ChangeState]
    """The transform's state: of the shared model at -1, or of every client of this rank in local training."""
    counters: Counters = field(init=False)

    def __post_init__(self) -> None:
        zeros = np.zeros(len(self.sizes), np.int64)
        self.counters = Counters(positions=zeros.copy(), averaged_at=zeros.copy())

    @property
    def num_train(self) -> int:
        """N, size of the training set."""
        return len(self.dataset.train)

    @property
    def epoch(self) -> float:
        """Samples so far / N."""
        return self.counters.num_samples / self.num_train

    def prefetch_after(self, client: Client) -> None:
        """Begin to decode the batch that this rank needs after this client's, where images are decoded on the fly."""
        if self.train_images.in_memory:
            return
        index = self.clients.index(client) + 1
        positions = self.counters.positions
        if index == len(self.clients):
            index, positions = 0, positions + self.sampler.counts(self.sizes)
        samples, passes = self.sampler.take(self.clients[index].id, positions, self.sizes)
        if len(samples):
            self.train_images.prefetch(samples, passes)

    def average_replicas(self) -> Replica:
        """Fill `mean` with the clients' weighted average, parameters and BatchNorm buffers, and return it.

        Weighted by the samples since the last averaging (or uniformly, as the job says); while the model is shared,
        only the buffers are the clients' own, weighted by all samples so far.
        """
        counters, comm = self.counters, self.comm
        if self.optimizer is not None:
            if self.mean.buffers.numel():
                weights = averaging_weights(counters.positions, "samples")
                buffers = [c.replica.buffers for c in self.clients]
                average(buffers, [weights[c.id] for c in self.clients], comm, "buffers", self.mean.buffers)
        elif counters.since_averaging.any():
            config = self.job.sync
            weights = averaging_weights(
                counters.since_averaging, config.weights if isinstance(config, FedAvgConfig) else "samples"
            )
            states = [c.replica.state for c in self.clients]
            average(states, [weights[c.id] for c in self.clients], comm, "state", self.mean.state)
        return self.mean


def make_experiment(job: JobConfig, comm: Communicator) -> Experiment:
    """Build this rank's share of a job whose clients are resolved.

    Raises:
        ConfigError: more ranks than clients, or parts of the job that do not fit each other.
        RunFailed: the ranks did not come to the same data and weights.
    """
    num_clients = len(sizes := job.local_batch_sizes())
    if comm.size > num_clients:
        raise ConfigError(f"clients: {num_clients} for {comm.size} ranks leaves some without work; start fewer ranks")
    _set_threads(comm)
    device = build.device(comm)
    if job.deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    autocast = build.autocast(job, device)
    dataset = load_dataset(job.data, is_downloader=comm.local_rank == 0, wait=comm.barrier)
    train_images, test_images = make_loaders(dataset, job.data, job.seed, device, build.dtype(job))
    labels = np.asarray(dataset.train.labels)
    sampler = make_sampler(job.partition, labels, num_clients, len(dataset.classes), job.seed)
    global_batch_size = int(sampler.counts(sizes).sum())
    sync = build.synchroniser(job, global_batch_size, len(labels))
    schedule = make_schedule(job, global_batch_size, len(labels))

    template = build.net(job, len(dataset.classes), train_images.image_shape, device)
    if min(sizes) == 1:
        _check_single_sample(template, train_images.image_shape)
    ids = clients_of_rank(num_clients, comm.rank, comm.size)
    transform = build.transform(job)
    optimizer, reducer, loss_scaler = None, None, build.loss_scaler(job, device)
    if sync.shared(1):
        mean = Replica(template)
        replicas = [Replica(template, parameters_of=mean) for _ in ids]
        optimizer = build.optimizer(job.optimizer, mean.parameters)
        reducer = GradientReducer(mean.parameters, comm, job.comm.bucket_mb)
        clients = [Client(i, replica, None, loss_scaler) for i, replica in zip(ids, replicas, strict=True)]
    else:
        mean = Replica(template)
        replicas = [Replica(template) for _ in ids]
        clients = [
            Client(i, replica, build.optimizer(job.optimizer, replica.parameters), build.loss_scaler(job, device))
            for i, replica in zip(ids, replicas, strict=True)
        ]
    _check_agreement(comm, dataset.fingerprint, mean.digest())
    return Experiment(
        job=job,
        comm=comm,
        device=device,
        dataset=dataset,
        train_images=train_images,
        test_images=test_images,
        sampler=sampler,
        sizes=sizes,
        global_batch_size=global_batch_size,
        sync=sync,
        schedule=schedule,
        clients=clients,
        optimizer=optimizer,
        reducer=reducer,
        mean=mean,
        autocast=autocast,
        loss_scaler=loss_scaler,
        clock=Clock(device),
        transform=transform,
        changes={} if transform is None else {i: transform.init() for i in (-1, *ids)},
    )


def _set_threads(comm: Communicator) -> None:
    """Share a node's cores among its ranks, unless the user has said otherwise."""
    if "OMP_NUM_THREADS" not in os.environ and comm.local_size > 1:
        usable = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, min(usable, (os.cpu_count() or 1) // comm.local_size)))


def _check_single_sample(template: torch.nn.Module, shape: tuple[int, int, int]) -> None:
    """Refuse a batch of one where BatchNorm would have one value per channel."""
    like = next(template.parameters())
    try:
        copy.deepcopy(template).train()(torch.zeros(1, *shape, dtype=like.dtype, device=like.device))
    except ValueError as error:
        raise ConfigError("batching: this net's BatchNorm needs at least 2 samples per client and step") from error


def _check_agreement(comm: Communicator, data: str, weights: str) -> None:
    rows = comm.allgather((data, weights))
    for what, column in (("data", 0), ("initial weights", 1)):
        odd = [rank for rank, row in enumerate(rows) if row[column] != rows[0][column]]
        if odd:
            raise RunFailed(f"rank {odd[0]} has other {what} than rank 0; are the files and versions the same there?")
