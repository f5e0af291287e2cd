"""The training loop: one step is forward and backward of every client, synchronisation, log, evaluation."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from hpclbfl.evaluate import Score, evaluate
from hpclbfl.experiment import Experiment
from hpclbfl.gradients import Context
from hpclbfl.gradients.norm import squared_norm
from hpclbfl.gradients.scaler import scale_gradients
from hpclbfl.optim.slots import reset_slots
from hpclbfl.progress import Progress
from hpclbfl.replicas import Client, key_generators
from hpclbfl.runlog.writer import RunLog
from hpclbfl.sections import FedAvgConfig
from hpclbfl.steplog import ClientRecord, GradientRecord, StepLog, StepRecord
from hpclbfl.sync.fedavg import average_optimizer_states, averaging_weights
from hpclbfl.timing import Mark

SHARED = -1
"""Stands for a client where the model is shared."""
TIME_UP = 1
"""Vote of rank 0: the job's seconds are over."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run came to."""

    reason: str
    """Which stop condition was met."""
    step: int
    epoch: float
    num_samples: int
    elapsed_s: float
    top1: float
    top5: float
    loss: float
    """Test cross-entropy, nats."""


def train(exp: Experiment, log: RunLog, progress: Progress) -> Outcome:
    """Run an experiment to its end on this rank; every rank calls this and gets the same outcome but for the time."""
    with StepLog(log, exp.clock) as steps:
        return _loop(exp, log, steps, progress)


def _loop(exp: Experiment, log: RunLog, steps: StepLog, progress: Progress) -> Outcome:
    counters = exp.counters
    score: Score | None = None
    reason = ""
    while not reason:
        begin = time.perf_counter()
        # 1. Every client's forward and backward pass, and the update, alone or with the summed gradient.
        record = _begin_record(exp)
        votes = _shared_step(exp, record) if exp.optimizer is not None else _local_step(exp, record)

        # 2. Parameters are averaged where the synchroniser says so.
        counters.positions += exp.sampler.counts(exp.sizes)
        counters.step += 1
        if exp.sync.averages(counters.step, fired=False):
            _average(exp, record)
        if exp.sync.shared(counters.step) or exp.sync.averages(counters.step, fired=False):
            counters.round += 1

        # 3. The log; on a GPU this is where the host waits for the device.
        reason = _reason_to_stop(exp, votes)
        evaluates = bool(reason) or _evaluation_is_due(exp)
        record.epoch, record.num_samples = exp.epoch, counters.num_samples
        steps.add(record)
        if evaluates:
            steps.flush()
        log.tick()
        counters.elapsed_s += time.perf_counter() - begin
        progress.step(counters.step, exp.epoch, steps.last_loss)

        # 4. Evaluation and the end, both decided from what all ranks know.
        if evaluates:
            score = evaluate_all(exp, log, progress)
            top1 = exp.job.stop.top1
            reason = reason or ("top1" if top1 is not None and score.top1 >= top1 else "")
    log.flush()
    final = score or Score(math.nan, math.nan, math.nan)
    return Outcome(
        reason, counters.step, exp.epoch, counters.num_samples, counters.elapsed_s, final.top1, final.top5, final.loss
    )


def _begin_record(exp: Experiment) -> StepRecord:
    counters = exp.counters
    return StepRecord(counters.step, counters.round, exp.epoch, counters.num_samples, exp.schedule.lr(exp.epoch))


def _shared_step(exp: Experiment, record: StepRecord) -> int:
    """One step of the shared model; returns the votes of all ranks."""
    optimizer, reducer = exp.optimizer, exp.reducer
    if optimizer is None or reducer is None:
        raise RuntimeError("a shared step needs the shared model's optimizer and reducer")
    votes = _time_vote(exp)
    for client in exp.clients:
        if client is exp.clients[-1]:
            reducer.arm(votes)
        # sum over samples / B, then a sum over clients: the mean over all B samples, whatever each client's share.
        _forward_backward(exp, client, record, exp.global_batch_size)
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


def _local_step(exp: Experiment, record: StepRecord) -> int:
    """One step of every client's own model; returns the votes where they are taken."""
    counts = exp.sampler.counts(exp.sizes)
    for client in exp.clients:
        if client.optimizer is None:
            raise RuntimeError("a local step needs every client's own optimizer")
        _forward_backward(exp, client, record, int(counts[client.id]))
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
    votes = exp.comm.vote(_time_vote(exp))
    record.sync.append((begin, exp.clock.mark()))
    return votes


def _forward_backward(exp: Experiment, client: Client, record: StepRecord, divisor: int) -> None:
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


def _average(exp: Experiment, record: StepRecord) -> None:
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


def evaluate_all(exp: Experiment, log: RunLog, progress: Progress) -> Score:
    """Score the (virtual) average on the job's splits, write the rows, and return the test split's."""
    counters, config = exp.counters, exp.job.evaluate
    module = exp.average_replicas().module
    scores = {}
    for split in config.splits:
        images = exp.test_images if split == "test" else exp.train_images
        scores[split] = score = evaluate(module, images, exp.comm, config.batch_size, exp.autocast())
        if exp.comm.rank == 0:
            log.append(
                "evals",
                step=counters.step - 1,
                epoch=exp.epoch,
                num_samples=counters.num_samples,
                elapsed_s=counters.elapsed_s,
                split=split,
                **asdict(score),
            )
    log.flush()
    progress.evaluated(scores["test"].top1)
    return scores["test"]


def _time_vote(exp: Experiment) -> int:
    limit = exp.job.stop.seconds
    return TIME_UP if limit is not None and exp.comm.rank == 0 and exp.counters.elapsed_s >= limit else 0


def _reason_to_stop(exp: Experiment, votes: int) -> str:
    stop, counters = exp.job.stop, exp.counters
    if stop.steps is not None and counters.step >= stop.steps:
        return "steps"
    if stop.samples is not None and counters.num_samples >= stop.samples:
        return "samples"
    if stop.epochs is not None and counters.num_samples >= round(stop.epochs * exp.num_train):
        return "epochs"
    return "seconds" if votes & TIME_UP else ""


def _evaluation_is_due(exp: Experiment) -> bool:
    config, counters = exp.job.evaluate, exp.counters
    if config.every_steps is not None:
        return counters.step % config.every_steps == 0
    if config.every_epochs is None:
        return False
    period = max(1, round(config.every_epochs * exp.num_train))
    return counters.num_samples // period > (counters.num_samples - exp.global_batch_size) // period
