"""One optimizer step of every client of this rank, with the shared model or with each client's own."""

from __future__ import annotations

import time
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hpclbfl.algorithms.averaging import average_optimizer_states
from hpclbfl.algorithms.replicas import Client, key_generators
from hpclbfl.algorithms.selsync import SelectiveSynchronisation
from hpclbfl.comm.reducer import GradientReducer
from hpclbfl.config.sections import LocalConfig
from hpclbfl.core.clock import Mark
from hpclbfl.gradients.change import has_changed, is_unknown
from hpclbfl.gradients.norm import layer_squared_norms, squared_norm
from hpclbfl.gradients.pipeline import SHARED
from hpclbfl.gradients.scaler import scale_gradients
from hpclbfl.gradients.weight_noise import client_factors
from hpclbfl.optim.slots import reset_slots
from hpclbfl.training.state import Experiment
from hpclbfl.training.steplog import ClientRecord, StepRecord

TIME_UP = 1
"""Vote of rank 0: the job's seconds are over."""
CHANGED = 2
"""Vote of a rank one of whose clients saw its gradient change (SelSync)."""
STOP = 4
"""Vote of a rank that was asked to stop."""
SAVE = 8
"""Vote of rank 0: it is time for a checkpoint."""
NONFINITE = 16
"""Vote of a rank that saw a gradient which is not finite."""
UNKNOWN = 32
"""Vote of a rank one of whose clients cannot tell yet whether its gradient changes (SelSync)."""
_LOOK_EVERY = 50
"""Steps between two looks at a GPU for a gradient that was not finite."""


def shared_step(exp: Experiment, record: StepRecord, votes: int) -> int:
    """One step of the shared model; this rank's votes go with the gradients, those of all ranks come back."""
    optimizer, reducer = exp.optimizer, exp.reducer
    if optimizer is None or reducer is None:
        raise RuntimeError("a shared step needs the shared model's optimizer and reducer")
    counts = exp.sampler.counts(exp.sizes_now)
    loss_scale = _loss_scale(exp)
    # sum over samples / B, then a sum over clients: the mean over all B samples, whatever each client's share.
    divisors = counts.sum() / _client_factors(exp, counts)
    reducer.begin_step(votes, exp.times.outgoing())
    for client in exp.clients:
        count = max(1, int(counts[client.id]))
        divisor = float(divisors[client.id])
        share = count / divisor
        with exp.extrapolation.ahead(client.id, share) if exp.extrapolation else nullcontext() as keep:
            reducer.begin_pass(client is exp.clients[-1], 1.0 / share, keep)
            forward_backward(exp, client, record, divisor)
            own = reducer.end_pass()
        if own is not None and counts[client.id]:
            record.clients[-1].columns["local_grad_sq_norm"] = own / (share * loss_scale) ** 2
    begin = exp.clock.mark()
    votes = reducer.finish()
    if exp.emulation is not None:
        exp.emulation.transfer(reducer.flat.nbytes)
    synced, host_begin = exp.clock.mark(), time.perf_counter()
    exp.loss_scaler.unscale_(optimizer)
    multiplier = _measure_shared(exp, record, reducer, counts, loss_scale)
    if _is_broken(exp, record.columns.get("grad_sq_norm")):
        # All ranks see it in the sum.
        votes |= NONFINITE
        if exp.comm.rank == 0:
            record.events.append(("nonfinite", _nonfinite_text(exp, "the reduced gradient")))
    else:
        _update(exp, optimizer, exp.loss_scaler, record.lr, multiplier)
    reducer.zero_grad()
    if exp.emulation is not None:
        exp.emulation.stretch(exp.counters.step, host_begin)
    record.sync.append((begin, synced))
    record.update.append((synced, exp.clock.mark()))
    return votes


def local_step(exp: Experiment, record: StepRecord, votes: int) -> int:
    """One step of every client's own model; returns the votes where they are taken."""
    counts = exp.sampler.counts(exp.sizes_now)
    for client in exp.clients:
        if client.optimizer is None:
            raise RuntimeError("a local step needs every client's own optimizer")
        forward_backward(exp, client, record, int(counts[client.id]))
        begin, host_begin = exp.clock.mark(), time.perf_counter()
        if counts[client.id]:
            client.loss_scaler.unscale_(client.optimizer)
            multiplier = _measure_local(exp, client, record.clients[-1])
            votes |= _ask_for_averaging(exp, record.clients[-1])
            if _is_broken(exp, record.clients[-1].columns.get("local_grad_sq_norm")):
                votes |= NONFINITE
                record.events.append(("nonfinite", _nonfinite_text(exp, f"client {client.id}'s gradient")))
            else:
                _update(exp, client.optimizer, client.loss_scaler, record.lr, multiplier)
        client.optimizer.zero_grad(set_to_none=True)
        if exp.emulation is not None:
            exp.emulation.stretch(exp.counters.step, host_begin)
        record.update.append((begin, exp.clock.mark()))
    exp.pending_votes |= votes & NONFINITE
    if not exp.sync.needs_vote(exp.counters.step + 1):
        return 0
    begin = exp.clock.mark()
    votes = exp.comm.vote(votes | exp.pending_votes)
    exp.pending_votes = 0
    record.sync.append((begin, exp.clock.mark()))
    return votes


def average_clients(exp: Experiment, record: StepRecord) -> None:
    """Give every client the weighted mean of all; what becomes of momentum is the job's choice."""
    begin = exp.clock.mark()
    weights = exp.average_replicas()
    if exp.emulation is not None:
        exp.emulation.transfer(exp.mean.state.nbytes)
    counts = exp.mean.counts
    for client in exp.clients:
        client.replica.state.copy_(exp.mean.state)
        client.replica.set_counts(counts)
    config = exp.job.sync
    if isinstance(config, LocalConfig) and config.optimizer_state == "average":
        average_optimizer_states(exp.clients, [weights[c.id] for c in exp.clients], exp.comm)
    elif isinstance(config, LocalConfig) and config.optimizer_state == "reset":
        for client in exp.clients:
            if client.optimizer is not None:
                reset_slots(client.optimizer)
    exp.counters.averaged_at = exp.counters.positions.copy()
    record.sync.append((begin, exp.clock.mark()))


def forward_backward(exp: Experiment, client: Client, record: StepRecord, divisor: float) -> None:
    """Add the gradient of sum(losses) / divisor to the client's parameters."""
    clock, job, step = exp.clock, exp.job, exp.counters.step
    begin, host_begin = clock.mark(), time.perf_counter()
    samples, passes = exp.sampler.take(client.id, exp.counters.positions, exp.sizes_now)
    if len(samples) == 0:
        record.clients.append(ClientRecord(client.id, 0, (begin, begin), (begin, begin)))
        return
    images, labels = exp.train_images.batch(samples, passes)
    exp.prefetch_after(client)
    loaded: Mark = clock.mark()
    key_generators(job.seed, client.id, step)
    with exp.autocast():
        scores = client.replica.module(images)
        losses = nn.functional.cross_entropy(scores, labels, reduction="sum", label_smoothing=job.loss.label_smoothing)
    client.loss_scaler.scale(losses / divisor).backward()
    if exp.emulation is not None:
        exp.emulation.stretch(step, host_begin)
    columns = {"loss": losses.detach() / len(samples)}
    record.clients.append(ClientRecord(client.id, len(samples), (begin, loaded), (loaded, clock.mark()), columns))


def look_for_nonfinite(exp: Experiment, record: StepRecord) -> int:
    """NONFINITE where a rank saw a gradient that was not finite; a collective, before the state is relied on.

    Between two looks a GPU's host knows nothing of them. A CPU's looks in every step, but while clients train alone it
    tells the other ranks at the next vote.
    """
    tells_at_once = not _looks_late(exp) and exp.optimizer is not None
    if tells_at_once or exp.job.on_nonfinite not in ("stop", "restore"):
        return 0
    is_broken = exp.is_broken is not None and bool(exp.is_broken)
    seen = NONFINITE if is_broken else exp.pending_votes & NONFINITE
    votes = exp.comm.vote(seen) & NONFINITE
    # All ranks see a shared model's gradient; rank 0 logs it.
    speaks = exp.optimizer is None or exp.comm.rank == 0
    if is_broken and speaks and not any(kind == "nonfinite" for kind, _ in record.events):
        record.events.append(("nonfinite", _nonfinite_text(exp, "a gradient at or before this step")))
    return votes


def _loss_scale(exp: Experiment) -> Tensor | float:
    """By how much the gradients of the shared model are too large until they are unscaled; 0-d, on the device."""
    if not exp.loss_scaler.is_enabled():
        return 1.0
    one: Tensor = exp.loss_scaler.scale(torch.ones((), dtype=torch.float64, device=exp.device))
    return one


def _client_factors(exp: Experiment, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """[C] what each client's weight is multiplied with."""
    noise = exp.job.gradients.weight_noise
    if noise is None:
        return np.ones(len(counts))
    return client_factors(counts, noise, exp.job.seed, exp.counters.step)


def _measure_shared(
    exp: Experiment,
    record: StepRecord,
    reducer: GradientReducer,
    counts: NDArray[np.int64],
    loss_scale: Tensor | float,
) -> Tensor | None:
    """Log the reduced, unscaled gradient and return its multiplier."""
    every = exp.job.gradients.layers_every
    logs_layers = every is not None and exp.counters.step % every == 0
    needs_layers = exp.pipeline is not None and exp.pipeline.transform.needs_layers
    layers = layer_squared_norms(reducer.by_layer()) if logs_layers or needs_layers else None
    if logs_layers and exp.comm.rank == 0:
        record.layer_sq_norms = layers
    if exp.pipeline is None:
        return None
    sq_norm = reducer.sq_norm if reducer.sq_norm is not None else squared_norm([reducer.flat])
    multiplier, record.columns = exp.pipeline.update(sq_norm, exp.counters.step, SHARED, layers)
    num_clients = int((counts > 0).sum())
    if num_clients > 1 and exp.pipeline.noise_scale is not None:
        # The clients' own norms were taken before the loss scaling was undone.
        local = reducer.noise / loss_scale**2
        record.columns |= exp.pipeline.estimate_noise(local, sq_norm, num_clients, int(counts.sum()))
    return multiplier


def _measure_local(exp: Experiment, client: Client, record: ClientRecord) -> Tensor | None:
    """Log a client's own, unscaled gradient and return its multiplier."""
    if exp.pipeline is None:
        return None
    gradients = [p.grad for p in client.replica.parameters if p.grad is not None]
    layers = layer_squared_norms(gradients) if exp.pipeline.transform.needs_layers else None
    sq_norm = squared_norm(gradients)
    multiplier, columns = exp.pipeline.update(sq_norm, exp.counters.step, client.id, layers)
    record.columns |= columns
    return multiplier


def _ask_for_averaging(exp: Experiment, record: ClientRecord) -> int:
    """SelSync: this client's vote."""
    if not isinstance(exp.sync, SelectiveSynchronisation):
        return 0
    change, sq_norm = record.columns["grad_change"], record.columns["local_grad_sq_norm"]
    if has_changed(change, exp.sync.threshold):
        return CHANGED
    return UNKNOWN if is_unknown(change, sq_norm) else 0


def _is_broken(exp: Experiment, sq_norm: Tensor | None) -> bool:
    """Whether the step must not be taken; loss scaling looks after its own overflows."""
    mode = exp.job.on_nonfinite
    if mode == "ignore" or sq_norm is None or exp.loss_scaler.is_enabled():
        return False
    if not _looks_late(exp) or mode == "skip":
        return not bool(torch.isfinite(sq_norm))
    # A run that is to end may end a little later.
    broken = ~torch.isfinite(sq_norm)
    exp.is_broken = broken if exp.is_broken is None else exp.is_broken | broken
    return exp.counters.step % _LOOK_EVERY == 0 and bool(exp.is_broken)


def _looks_late(exp: Experiment) -> bool:
    """Whether looking at a number makes the host wait for the device."""
    return exp.device.type == "cuda"


def _nonfinite_text(exp: Experiment, whose: str) -> str:
    return f"{whose} is not finite{'; the step is skipped' if exp.job.on_nonfinite == 'skip' else ''}"


def _update(
    exp: Experiment,
    optimizer: torch.optim.Optimizer,
    loss_scaler: torch.amp.GradScaler,
    lr: float,
    multiplier: Tensor | None,
) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    if multiplier is not None:
        scale_gradients(optimizer, multiplier, loss_scaler.is_enabled())
    loss_scaler.step(optimizer)
    loss_scaler.update()
