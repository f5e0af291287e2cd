"""A run's trained net: built from its job, filled with its newest state, replicas averaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hpclbfl.algorithms.averaging import average, averaging_weights, largest
from hpclbfl.algorithms.flat_model import FlatModel
from hpclbfl.algorithms.rank import clients_of_rank
from hpclbfl.comm.base import Communicator
from hpclbfl.config.job import JobConfig
from hpclbfl.config.migrate import migrated
from hpclbfl.core.errors import ConfigError, DataError
from hpclbfl.core.precision import dtype_of
from hpclbfl.data.datasets import Dataset
from hpclbfl.data.loaders import BatchLoader, data_spec, make_loader
from hpclbfl.data.sampling import make_sampler
from hpclbfl.models import DataSpec
from hpclbfl.models.initial import initial_net
from hpclbfl.runs.checkpoint import CheckpointStore, Found
from hpclbfl.runs.tensorfile import read_tensors
from hpclbfl.sharpness.source import Source
from hpclbfl.training.snapshot import check_progress

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """A run's net and what it was trained on."""

    net: nn.Module
    step: int
    """Optimizer steps that the net has taken."""
    dataset: Dataset
    data: DataSpec
    loader: BatchLoader
    """Of the training split, closed by the caller."""


def trained_net(
    source: Source,
    job: JobConfig,
    comm: Communicator,
    dataset: Dataset,
    device: torch.device,
    warn: Callable[[str], None],
) -> Trained:
    """Build the run's net on a device and load its newest state; a collective.

    Args:
        job: of the run, its clients resolved.
        warn: is called with a line about each damaged checkpoint that was skipped.

    Raises:
        ConfigError, DataError: as `load_state`.
    """
    dtype = dtype_of(job.precision)
    loader = make_loader(dataset.train, job.data, job.seed, device, dtype)
    data = data_spec(dataset, loader)
    net = initial_net(job.model, data, job.seed, device, dtype)
    num_clients = len(job.local_batch_sizes())
    sampler = make_sampler(job.partition, dataset.train, num_clients, dataset.num_classes, job.seed)
    net, step, problems = load_state(net, source, job, sampler.capacity, comm)
    for line in problems:
        warn(f"warning: passed over: {line}")
    return Trained(net, step, dataset, data, loader)


def load_state(
    net: nn.Module, source: Source, job: JobConfig, shards: NDArray[np.int64], comm: Communicator
) -> tuple[nn.Module, int, list[str]]:
    """The net with the run's newest state, as an evaluation would see it; a collective.

    While clients train alone, that is the average of their models, weighted as an averaging would be at that step;
    while the model is shared, BatchNorm's running statistics are averaged, weighted by samples.

    Args:
        net: newly built, on its device.
        job: of the run, its clients resolved.
        shards: [C] samples that each client owns.

    Returns:
        The net, the optimizer steps that it has taken, and a line about each damaged checkpoint that was skipped.

    Raises:
        ConfigError: no checkpoint can be read, or the newest is of another experiment.
        DataError: the state does not fit the job.
    """
    if source.finished_step is not None:
        _read_model(net, source)
        return net, source.finished_step, []
    num_clients = len(job.local_batch_sizes())
    # A rank without clients reads only the shared part.
    clients = clients_of_rank(num_clients, comm.rank, comm.size)
    store = CheckpointStore(source.folder.checkpoints, comm)
    found, problems = store.load(clients, lambda found: check_progress(found.shared, found.step, num_clients))
    if found is None:
        reason = f": {problems[0]}" if problems else ""
        raise ConfigError(f"{source.folder.path}: holds no checkpoint that can be read{reason}")
    _check_experiment(found, source, job)
    replica = FlatModel(net)
    try:
        _fill(replica, found, job, shards, comm)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"{source.folder.checkpoints}: the checkpoint at step {found.step} does not fit the run's config.yaml: "
            f"{type(error).__name__}: {error}"
        ) from error
    return replica.module, found.step, problems


def _check_experiment(found: Found, source: Source, job: JobConfig) -> None:
    """Refuse the checkpoint of an earlier experiment in the same folder.

    Data are compared elsewhere, plan files may have been removed, and `stop` may have been raised since.
    """
    own = job.model_dump(mode="json")
    saved = migrated(found.fingerprint)
    keys = [key for key in saved if key in own and key not in ("data", "batching", "stop")]
    differing = [key for key in keys if saved[key] != own[key]]
    if differing:
        raise ConfigError(
            f"{source.folder.checkpoints}: the checkpoint at step {found.step} is another experiment's, its "
            f"{', '.join(differing)} differs from config.yaml; delete step-{found.step:09d}"
        )


def _read_model(net: nn.Module, source: Source) -> None:
    try:
        net.load_state_dict(read_tensors(source.folder.model, source.model_checksum))
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{source.folder.model}: does not fit the run's config.yaml: {reason}") from error


def _fill(replica: FlatModel, found: Found, job: JobConfig, shards: NDArray[np.int64], comm: Communicator) -> None:
    """As `RankState.average_replicas` does, without the optimizers and policies of a run."""
    state, shared = replica.state, found.shared
    positions = np.array(shared["positions"], np.int64)
    parts = {client: found.clients[client] for client in sorted(found.clients)}
    if replica.counts.numel():
        names = [name for name, buffer in replica.module.named_buffers() if not buffer.is_floating_point()]
        counts = [_flat([part["buffers"][name] for name in names], replica.counts) for part in parts.values()]
        replica.set_counts(largest(counts, "counts", comm, replica.counts)())
    if shared["model"] is not None:
        state.copy_(shared["model"])
        if replica.buffers.numel():
            names = [name for name, buffer in replica.module.named_buffers() if buffer.is_floating_point()]
            flats = [_flat([part["buffers"][name] for name in names], state) for part in parts.values()]
            weights = averaging_weights(positions, "samples")
            average(flats, [float(weights[c]) for c in parts], comm, "buffers", replica.buffers)
        return
    since = positions - np.array(shared["averaged_at"], np.int64)
    weights = averaging_weights(since, job.sync.averaged_by, shards)
    if not since.any():
        # Just averaged: all clients hold the same model, and that of one has no rounding errors.
        weights = np.eye(1, len(positions))[0]
    states = [part["model"].to(state.device, state.dtype) for part in parts.values()]
    average(states, [float(weights[c]) for c in parts], comm, "state", state)


def _flat(tensors: list[Any], like: Tensor) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).to(like.device, like.dtype)
