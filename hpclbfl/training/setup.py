"""Builds a rank's share of a run from its job."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from hpclbfl.algorithms.counters import Counters
from hpclbfl.algorithms.times import TimeExchange
from hpclbfl.comm.base import Communicator
from hpclbfl.comm.side_channel import SideChannel
from hpclbfl.config.components import ALGORITHMS, POLICIES
from hpclbfl.config.job import JobConfig
from hpclbfl.core.clock import Clock
from hpclbfl.core.errors import ConfigError, RunFailed
from hpclbfl.data.datasets import load_dataset
from hpclbfl.data.loaders import BatchLoader, data_spec, make_loaders
from hpclbfl.data.sampling import make_sampler
from hpclbfl.gradients.norm import arithmetic
from hpclbfl.optim.schedule import make_schedule, with_end
from hpclbfl.training import build
from hpclbfl.training.footprint import measure
from hpclbfl.training.notices import notices_at_start
from hpclbfl.training.state import TrainState


def make_state(job: JobConfig, comm: Communicator) -> TrainState:
    """Build this rank's share of a job whose clients are resolved.

    Raises:
        ConfigError: more ranks than clients, or parts of the job that do not fit each other.
        RunFailed: the ranks did not come to the same data and weights.
    """
    num_clients = len(job.local_batch_sizes())
    if comm.size > num_clients:
        raise ConfigError(f"clients: {num_clients} for {comm.size} ranks leaves some without work; start fewer ranks")
    _set_threads(comm)
    device = build.device(comm)
    if job.deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    autocast = build.autocast(job, device)
    dataset = load_dataset(job.data, is_downloader=comm.local_rank == 0, wait=comm.barrier)
    train, test = make_loaders(dataset, job.data, job.seed, device, build.dtype(job))
    num_train = len(dataset.train)
    sampler = make_sampler(job.partition, dataset.train, num_clients, dataset.num_classes, job.seed)
    build.check_batches(job, num_train)
    start_sizes = build.start_sizes(job, sampler)
    policy = POLICIES.make(job.batching, job, comm.size, start_sizes, sampler.capacity.tolist())
    plan, policy_state = policy.init(start_sizes)
    sizes = plan.sizes
    global_batch_size = int(sampler.counts(sizes).sum())
    algorithm = ALGORITHMS.make(job.sync, global_batch_size, num_train)
    job = with_end(job, global_batch_size, num_train)
    schedule = make_schedule(job, global_batch_size, num_train)

    data = data_spec(dataset, train)
    loss = build.loss(job, data)
    template = build.net(job, data, device)
    if min(sizes) == 1:
        _check_single_sample(template, train)
    clock = Clock(device)
    state = TrainState(
        job=job,
        comm=comm,
        side_channel=SideChannel(comm),
        device=device,
        clock=clock,
        dataset=dataset,
        train=train,
        test=test,
        loss=loss,
        sampler=sampler,
        plan=plan,
        start_sizes=start_sizes,
        policy=policy,
        policy_state=policy_state,
        local_steps=build.local_steps(job, comm.size),
        algorithm=algorithm,
        schedule=schedule,
        autocast=autocast,
        agree=_agreeing(comm, device),
        footprint=replace(measure(template, train, autocast), local_size=comm.local_size),
        notes=notices_at_start(job, sampler, global_batch_size, num_train),
        times=TimeExchange(comm, clock),
        emulation=build.emulation(job, comm, device),
        counters=Counters(num_clients),
    )
    state.model = state.make_shared_model(template) if algorithm.shares_model(1) else state.make_replicas(template)
    _check_agreement(comm, dataset.fingerprint, state.mean.digest())
    algorithm.start(state)
    if job.stop.top1 is not None and not state.has_classes:
        raise ConfigError("stop.top1: these samples have no classes that could be right; end the run otherwise")
    state.check_memory()
    return state


def _agreeing(comm: Communicator, device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """What makes a norm equal on all ranks: nothing where they round alike, else rank 0's is taken."""
    if len(set(comm.allgather(arithmetic(device)))) == 1:
        return None

    def take_first(norm: Tensor) -> Tensor:
        comm.broadcast_([norm])
        return norm

    return take_first


def _set_threads(comm: Communicator) -> None:
    """Share a node's cores among its ranks, unless the user has said otherwise."""
    if "OMP_NUM_THREADS" not in os.environ and comm.local_size > 1:
        usable = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, min(usable, (os.cpu_count() or 1) // comm.local_size)))


def _check_single_sample(template: torch.nn.Module, loader: BatchLoader) -> None:
    """Refuse a batch of one where BatchNorm would have one value per channel."""
    try:
        copy.deepcopy(template).train()(loader.example(1))
    except ValueError as error:
        raise ConfigError("batching: this net's BatchNorm needs at least 2 samples per client and step") from error


def check_alike(comm: Communicator, parts: list[str]) -> None:
    """Refuse ranks that have loaded other sources of own parts, given by their hashes; a collective.

    Raises:
        RunFailed: names a rank.
    """
    rows = comm.allgather(parts)
    odd = [rank for rank, row in enumerate(rows) if row != rows[0]]
    if odd:
        raise RunFailed(f"rank {odd[0]} has read other own parts than rank 0; were the files changed just now?")


def _check_agreement(comm: Communicator, data: str, weights: str) -> None:
    rows = comm.allgather((data, weights))
    for what, column in (("data", 0), ("initial weights", 1)):
        odd = [rank for rank, row in enumerate(rows) if row[column] != rows[0][column]]
        if odd:
            raise RunFailed(f"rank {odd[0]} has other {what} than rank 0; are the files and versions the same there?")
