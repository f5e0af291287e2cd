"""Builds a rank's share of a run from its job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from hpclbfl.algorithms.counters import Counters
from hpclbfl.algorithms.emulate import make_emulation
from hpclbfl.algorithms.rank import clients_of_rank
from hpclbfl.algorithms.times import TimeExchange
from hpclbfl.batching.bounds import check_batches, held_sizes
from hpclbfl.batching.local_steps import equal_steps
from hpclbfl.comm import devices
from hpclbfl.comm.base import Communicator
from hpclbfl.comm.side_channel import SideChannel
from hpclbfl.config.components import ALGORITHMS, POLICIES
from hpclbfl.config.job import JobConfig
from hpclbfl.core.clock import Clock
from hpclbfl.core.errors import ConfigError, RunFailed
from hpclbfl.core.precision import autocast_of, dtype_of
from hpclbfl.data.datasets import load_dataset
from hpclbfl.data.loaders import data_spec, make_loaders
from hpclbfl.data.sampling import make_sampler
from hpclbfl.gradients.norm import arithmetic
from hpclbfl.losses.checked import make_loss
from hpclbfl.models.initial import initial_net
from hpclbfl.optim.schedule import make_schedule, with_end
from hpclbfl.runs.fingerprint import identity_of
from hpclbfl.training.footprint import measure, smallest_batch
from hpclbfl.training.notices import notices_at_start
from hpclbfl.training.state import TrainState


def make_state(job: JobConfig, comm: Communicator) -> TrainState:
    """Build this rank's share of a job whose clients are resolved.

    Raises:
        ConfigError: more ranks than clients, or parts of the job that do not fit each other.
        RunFailed: the ranks did not come to the same data and weights.
    """
    given, asked = job, job.local_batch_sizes()
    num_clients = len(asked)
    if comm.size > num_clients:
        raise ConfigError(f"clients: {num_clients} for {comm.size} ranks leaves some without work; start fewer ranks")

    # 1. Where it computes.
    devices.share_cores(comm)
    device = devices.choose(comm)
    if job.deterministic:
        devices.use_deterministic_kernels(device)

    dtype, autocast = dtype_of(job.precision), autocast_of(job.precision, device)

    # 2. The data, and the loss that goes with them.
    dataset = load_dataset(job.data, is_downloader=comm.local_rank == 0, wait=comm.barrier)
    train, test = make_loaders(dataset, job.data, job.seed, device, dtype)
    data, num_train = data_spec(dataset, train), len(dataset.train)
    sampler = make_sampler(job.partition, dataset.train, num_clients, dataset.num_classes, job.seed)
    loss = make_loss(job, data)

    # 3. The net.
    template = initial_net(job.model, data, job.seed, device, dtype)
    footprint = replace(measure(template, train, autocast), local_size=comm.local_size)
    if job.gradients.teacher is not None:
        # In a training step the clients' own gradients are kept.
        own = len(clients_of_rank(num_clients, comm.rank, comm.size))
        footprint = replace(footprint, fixed=footprint.fixed * (1 + own))

    # 4. The batches.
    check_batches(job.batching, asked, num_train)
    start_sizes = held_sizes(asked, sampler.counts(asked).tolist())
    smallest = 1 if job.batching.is_fixed and min(start_sizes) > 1 else smallest_batch(template, train)
    batching = job.batching.at_least(smallest)
    capacity = sampler.capacity.tolist()
    policy = POLICIES.make(batching, job, comm.size, start_sizes, capacity)
    plan, policy_state = policy.init(start_sizes)
    if any(size < smallest for size, most in zip(plan.sizes, capacity, strict=True) if most):
        raise ConfigError(f"batching: this net's BatchNorm needs at least {smallest} samples per client and step")
    counts = sampler.counts(plan.sizes)
    global_batch_size = int(counts.sum())
    if job.gradients.teacher is not None:
        try:
            job.gradients.teacher.check_batches(counts.tolist(), job.sync.sums_gradients, job.sync.trains_alone)
        except ValueError as error:
            raise ConfigError(f"gradients.teacher: {error}") from error
    local_steps = equal_steps(job.sync.steps_of_fastest, num_clients, comm.size)

    # 5. The algorithm and its schedule.
    algorithm = ALGORITHMS.make(job.sync, global_batch_size, num_train)
    job = with_end(job, global_batch_size, num_train)
    schedule = make_schedule(job, global_batch_size, num_train)

    identity, clock = identity_of(job, given, dataset.fingerprint), Clock(device)
    state = TrainState(
        job=job,
        identity=identity,
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
        local_steps=local_steps,
        algorithm=algorithm,
        schedule=schedule,
        autocast=autocast,
        agree=_agreeing(comm, device),
        footprint=footprint,
        notes=notices_at_start(job, asked, sampler, global_batch_size, num_train),
        times=TimeExchange(comm, clock),
        emulation=make_emulation(job, comm, device),
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
