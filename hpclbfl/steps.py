"""One optimizer step of every client of this rank, with the shared model or with each client's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpclbfl.experiment import Experiment
from hpclbfl.gradients import Context
from hpclbfl.gradients.norm import squared_norm
from hpclbfl.gradients.scaler import scale_gradients
from hpclbfl.optim.slots import reset_slots
from hpclbfl.replicas import Client, key_generators
from hpclbfl.sections import FedAvgConfig
from hpclbfl.steplog import ClientRecord, GradientRecord, StepRecord
from hpclbfl.sync.fedavg import average_optimizer_states, averaging_weights
from hpclbfl.timing import Mark

SHARED = -1
"""Stands for a client where the model is shared."""


def shared_step(exp: Experiment, record: StepRecord, votes: int) -> int:
    """One step of the shared model; this rank's votes go with the gradients, those of all ranks come back."""
    optimizer, reducer = exp.optimizer, exp.reducer
    if optimizer is None or reducer is None:
        raise RuntimeError("a shared step needs the shared model's optimizer and reducer")
    for client in exp.clients:
        if client is exp.clients[-1]:
            reducer.arm(votes)
        # sum over samples / B, then a sum over clients: the mean over all B samples, whatever each client's share.
        forward_backward(exp, client, record, exp.global_batch_size)
    begin = exp.clock.mark()
    votes = reducer.finish()
    synced = exp.clock.mark()
    exp.loss_scaler.unscale_(optimizer)
    record.gradient = _measure(exp, [reducer.flat], SHARED)
    _update(exp, optimizer, exp.loss_scaler, record.lr, record.gradient)
    reducer.zero_grad()
    record.sync.append((begin, synced))
    record.update.append((synced, exp.clock.mark()))
    return votes


def local_step(exp: Experiment, record: StepRecord, votes: int) -> int:
    """One step of every client's own model; returns the votes where they are taken."""
    counts = exp.sampler.counts(exp.sizes)
    for client in exp.clients:
        if client.optimizer is None:
            raise RuntimeError("a local step needs every client's own optimizer")
        forward_backward(exp, client, record, int(counts[client.id]))
        begin = exp.clock.mark()
        if counts[client.id]:
            client.loss_scaler.unscale_(client.optimizer)
            gradients = [p.grad for p in client.replica.parameters if p.grad is not None]
            own = record.clients[-1].gradient = _measure(exp, gradients, client.id)
            _update(exp, client.optimizer, client.loss_scaler, record.lr, own)
        client.optimizer.zero_grad(set_to_none=True)
        record.update.append((begin, exp.clock.mark()))
    if not exp.sync.needs_vote(exp.counters.step + 1):
        return 0
    begin = exp.clock.mark()
    votes = exp.comm.vote(votes)
    record.sync.append((begin, exp.clock.mark()))
    return votes


def average_clients(exp: Experiment, record: StepRecord) -> None:
    """Give every client the weighted mean of all; what becomes of momentum is the job's choice."""
    begin = exp.clock.mark()
    mean = exp.average_replicas()
    for client in exp.clients:
        client.replica.state.copy_(mean.state)
    config = exp.job.sync
    if isinstance(config, FedAvgConfig) and config.optimizer_state == "average":
        weights = averaging_weights(exp.counters.since_averaging, config.weights)
        average_optimizer_states(exp.clients, [weights[c.id] for c in exp.clients], exp.comm)
    elif isinstance(config, FedAvgConfig) and config.optimizer_state == "reset":
        for client in exp.clients:
            if client.optimizer is not None:
                reset_slots(client.optimizer)
    exp.counters.averaged_at = exp.counters.positions.copy()
    record.sync.append((begin, exp.clock.mark()))


def forward_backward(exp: Experiment, client: Client, record: StepRecord, divisor: int) -> None:
    """Add the gradient of sum(losses) / divisor to the client's parameters."""
    clock, job, step = exp.clock, exp.job, exp.counters.step
    begin = clock.mark()
    samples, passes = exp.sampler.take(client.id, exp.counters.positions, exp.sizes)
    if len(samples) == 0:
        record.clients.append(ClientRecord(client.id, 0, None, (begin, begin), (begin, begin)))
        return
    images, labels = exp.train_images.batch(samples, passes)
    exp.prefetch_after(client)
    loaded: Mark = clock.mark()
    key_generators(job.seed, client.id, step)
    with exp.autocast():
        scores = client.replica.module(images)
        losses = nn.functional.cross_entropy(scores, labels, reduction="sum", label_smoothing=job.loss.label_smoothing)
    client.loss_scaler.scale(losses / divisor).backward()
    loss = losses.detach() / len(samples)
    record.clients.append(ClientRecord(client.id, len(samples), loss, (begin, loaded), (loaded, clock.mark())))


def _measure(exp: Experiment, gradients: list[Tensor], client: int) -> GradientRecord | None:
    """Squared norm and change of an unscaled gradient, and the factor that it gets."""
    if exp.transform is None:
        return None
    sq_norm = squared_norm(gradients)
    context = Context(exp.job.seed, exp.counters.step, client)
    scale, exp.changes[client] = exp.transform.update(sq_norm, exp.changes[client], context)
    return GradientRecord(sq_norm, exp.changes[client].change, scale)


def _update(
    exp: Experiment,
    optimizer: torch.optim.Optimizer,
    loss_scaler: torch.amp.GradScaler,
    lr: float,
    gradient: GradientRecord | None,
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    if gradient is not None and exp.transform is not None and not exp.transform.is_identity:
        scale_gradients(optimizer, gradient.scale, loss_scaler.is_enabled())
    loss_scaler.step(optimizer)
    loss_scaler.update()
