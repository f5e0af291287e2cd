"""The net that is looked at: built from the run's job, filled with its newest state, its replicas averaged."""

from __future__ import annotations

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
from hpclbfl.runs.checkpoint import CheckpointStore, Found
from hpclbfl.runs.tensorfile import read_tensors
from hpclbfl.sharpness.source import Source
from hpclbfl.training.snapshot import check_progress


def load_state(
    net: nn.Module, source: Source, job: JobConfig, shards: NDArray[np.int64], comm: Communicator
) -> tuple[nn.Module, int, list[str]]:
    """The net with the run's newest state, as an evaluation would see it; a collective.

    While clients train alone, that is their average, weighted as an averaging would be at that step; while the model
    is shared, BatchNorm's running statistics are averaged, weighted by samples.

    Args:
        net: freshly built, on its device.
        job: of the run, its clients resolved.
        shards: [C] samples that each client owns.

    Returns:
        The net, the optimizer steps that it has taken, and a line about each damaged checkpoint that was passed over.

    Raises:
        ConfigError: no checkpoint can be read, or the newest is another experiment's.
        DataError: the state does not fit the job.
    """
    if source.finished_step is not None:
        _read_model(net, source)
        return net, source.finished_step, []
    num_clients = len(job.local_batch_sizes())
    # A rank beyond the clients reads the shared part alone.
    clients = clients_of_rank(num_clients, comm.rank, comm.size)
    store = CheckpointStore(source.folder.checkpoints, comm)
    found, problems = store.load(clients, lambda found: check_progress(found.shared, found.step, num_clients))
    if found is None:
        told = f": {problems[0]}" if problems else ""
        raise ConfigError(f"{source.folder.path}: holds no checkpoint that can be read{told}")
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
    """Refuse what an earlier experiment left in the folder.

    Data are compared elsewhere, plan files may be gone, and `stop` may have grown since.
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
        net.load_state_dict(read_tensors(source.model, source.model_checksum))
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{source.model}: does not fit the run's config.yaml: {reason}") from error


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
        # Just averaged: all clients hold the same model, and one of them says it without rounding.
        weights = np.eye(1, len(positions))[0]
    states = [part["model"].to(state.device, state.dtype) for part in parts.values()]
    average(states, [float(weights[c]) for c in parts], comm, "state", state)


def _flat(tensors: list[Any], like: Tensor) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).to(like.device, like.dtype)
