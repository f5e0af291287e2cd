"""One optimizer step of every client of this rank, with the shared model or with each client's own."""

from __future__ import annotations

import time
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpclbfl.algorithms.averaging import average_optimizer_states
from hpclbfl.algorithms.replicas import Client, seed_generators
from hpclbfl.algorithms.selsync import SelectiveSynchronisation
from hpclbfl.comm.reducer import GradientReducer
from hpclbfl.config.sections import LocalConfig
from hpclbfl.gradients.change import has_changed, is_unknown
from hpclbfl.gradients.norm import layer_squared_norms, squared_norm
from hpclbfl.gradients.pipeline import SHARED
from hpclbfl.gradients.scaler import scale_gradients
from hpclbfl.gradients.weight_noise import client_factors
from hpclbfl.optim.slots import reset_slots
from hpclbfl.training.state import TrainState
from hpclbfl.training.steplog import ClientRecord, StepRecord
from hpclbfl.training.terms import StepTerms, load_batch

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


def shared_step(state: TrainState, record: StepRecord, votes: int) -> int:
    """One step of the shared model; this rank's votes go with the gradients, those of all ranks come back."""
    optimizer, reducer = state.optimizer, state.reducer
    if optimizer is None or reducer is None:
        raise RuntimeError("a shared step needs the shared model's optimizer and reducer")
    counts = state.sampler.counts(state.sizes_now)
    loss_scale = _loss_scale(state)
    terms = StepTerms(state, record, counts)
    # sum over samples / B, then a sum over clients: the mean over all B samples, whatever each client's share.
    divisors = terms.total / _client_factors(state, counts)
    reducer.begin_step(votes, state.times.outgoing())
    for client in state.clients:
        divisor = float(divisors[client.id])
        share = terms.of(client) / divisor
        with state.extrapolation.ahead(client.id, share) if state.extrapolation else nullcontext() as keep:
            reducer.begin_pass(client is state.clients[-1], 1.0 / share, keep)
            forward_backward(state, client, record, divisor)
            own = reducer.end_pass()
        if own is not None and counts[client.id]:
            record.clients[-1].columns["local_grad_sq_norm"] = own / (share * loss_scale) ** 2
    begin = state.clock.mark()
    votes = reducer.finish()
    if state.emulation is not None:
        state.emulation.transfer(reducer.flat.nbytes)
    synced, host_begin = state.clock.mark(), time.perf_counter()
    state.loss_scaler.unscale_(optimizer)
    multiplier = _measure_shared(state, record, reducer, counts, loss_scale)
    if _is_broken(state, record.columns.get("grad_sq_norm")):
        # All ranks see it in the sum.
        votes |= NONFINITE
        if state.comm.rank == 0:
            record.events.append(("nonfinite", _nonfinite_text(state, "the reduced gradient")))
    else:
        _update(state, optimizer, state.loss_scaler, record.lr, multiplier)
    reducer.zero_grad()
    if state.emulation is not None:
        state.emulation.stretch(state.counters.step, host_begin)
    record.sync.append((begin, synced))
    record.update.append((synced, state.clock.mark()))
    return votes


def local_step(state: TrainState, record: StepRecord, votes: int) -> int:
    """One step of every client's own model; returns the votes where they are taken."""
    counts = state.sampler.counts(state.sizes_now)
    for client in state.clients:
        if client.optimizer is None:
            raise RuntimeError("a local step needs every client's own optimizer")
        forward_backward(state, client, record, None)
        begin, host_begin = state.clock.mark(), time.perf_counter()
        if counts[client.id]:
            client.loss_scaler.unscale_(client.optimizer)
            multiplier = _measure_local(state, client, record.clients[-1])
            votes |= _ask_for_averaging(state, record.clients[-1])
            if _is_broken(state, record.clients[-1].columns.get("local_grad_sq_norm")):
                votes |= NONFINITE
                record.events.append(("nonfinite", _nonfinite_text(state, f"client {client.id}'s gradient")))
            else:
                _update(state, client.optimizer, client.loss_scaler, record.lr, multiplier)
        client.optimizer.zero_grad(set_to_none=True)
        if state.emulation is not None:
            state.emulation.stretch(state.counters.step, host_begin)
        record.update.append((begin, state.clock.mark()))
    state.pending_votes |= votes & NONFINITE
    if not state.sync.needs_vote(state.counters.step + 1):
        return 0
    begin = state.clock.mark()
    votes = state.comm.vote(votes | state.pending_votes)
    state.pending_votes = 0
    record.sync.append((begin, state.clock.mark()))
    return votes


def average_clients(state: TrainState, record: StepRecord) -> None:
    """Give every client the weighted mean of all; what becomes of momentum is the job's choice."""
    begin = state.clock.mark()
    weights = state.average_replicas()
    if state.emulation is not None:
        state.emulation.transfer(state.mean.state.nbytes)
    counts = state.mean.counts
    for client in state.clients:
        client.replica.state.copy_(state.mean.state)
        client.replica.set_counts(counts)
    config = state.job.sync
    if isinstance(config, LocalConfig) and config.optimizer_state == "average":
        average_optimizer_states(state.clients, [weights[c.id] for c in state.clients], state.comm)
    elif isinstance(config, LocalConfig) and config.optimizer_state == "reset":
        for client in state.clients:
            if client.optimizer is not None:
                reset_slots(client.optimizer)
    state.counters.averaged_at = state.counters.positions.copy()
    record.sync.append((begin, state.clock.mark()))


def forward_backward(state: TrainState, client: Client, record: StepRecord, divisor: float | None) -> None:
    """Add the gradient of sum(losses) / divisor to the client's parameters; None: of their mean."""
    clock, step = state.clock, state.counters.step
    batch = load_batch(state, client)
    begin, host_begin = clock.mark(), time.perf_counter()
    if batch is None:
        record.clients.append(ClientRecord(client.id, 0, (begin, begin), (begin, begin)))
        return
    seed_generators(state.job.seed, client.id, step)
    with state.autocast():
        losses = state.loss(client.replica.module(batch.inputs), batch.targets)
    num_terms = max(1, batch.num_terms)
    client.loss_scaler.scale(losses / (num_terms if divisor is None else divisor)).backward()
    if state.emulation is not None:
        state.emulation.stretch(step, host_begin - batch.host_s)
    columns = {"loss": losses.detach() / num_terms}
    record.clients.append(ClientRecord(client.id, batch.num_samples, batch.loaded, (begin, clock.mark()), columns))


def look_for_nonfinite(state: TrainState, record: StepRecord) -> int:
    """NONFINITE where a rank saw a gradient that was not finite; a collective, before the state is relied on.

    Between two looks a GPU's host knows nothing of them. A CPU's looks in every step, but while clients train alone it
    tells the other ranks at the next vote.
    """
    tells_at_once = not _looks_late(state) and state.optimizer is not None
    if tells_at_once or state.job.on_nonfinite not in ("stop", "restore"):
        return 0
    is_broken = state.is_broken is not None and bool(state.is_broken)
    seen = NONFINITE if is_broken else state.pending_votes & NONFINITE
    votes = state.comm.vote(seen) & NONFINITE
    # All ranks see a shared model's gradient; rank 0 logs it.
    speaks = state.optimizer is None or state.comm.rank == 0
    if is_broken and speaks and not any(kind == "nonfinite" for kind, _ in record.events):
        record.events.append(("nonfinite", _nonfinite_text(state, "a gradient at or before this step")))
    return votes


def _loss_scale(state: TrainState) -> Tensor | float:
    """By how much the gradients of the shared model are too large until they are unscaled; 0-d, on the device."""
    if not state.loss_scaler.is_enabled():
        return 1.0
    one: Tensor = state.loss_scaler.scale(torch.ones((), dtype=torch.float64, device=state.device))
    return one


def _client_factors(state: TrainState, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """[C] what each client's weight is multiplied with."""
    noise = state.job.gradients.weight_noise
    if noise is None:
        return np.ones(len(counts))
    return client_factors(counts, noise, state.job.seed, state.counters.step)


def _measure_shared(
    state: TrainState,
    record: StepRecord,
    reducer: GradientReducer,
    counts: NDArray[np.int64],
    loss_scale: Tensor | float,
) -> Tensor | None:
    """Log the reduced, unscaled gradient and return its multiplier."""
    every = state.job.gradients.layers_every
    logs_layers = every is not None and state.counters.step % every == 0
    needs_layers = state.pipeline is not None and state.pipeline.transform.needs_layers
    layers = layer_squared_norms(reducer.by_layer()) if logs_layers or needs_layers else None
    if logs_layers and state.comm.rank == 0:
        record.layer_sq_norms = layers
    if state.pipeline is None:
        return None
    sq_norm = reducer.sq_norm if reducer.sq_norm is not None else squared_norm([reducer.flat])
    multiplier, record.columns = state.pipeline.update(sq_norm, state.counters.step, SHARED, layers)
    num_clients = int((counts > 0).sum())
    if num_clients > 1 and state.pipeline.noise_scale is not None:
        # The clients' own norms were taken before the loss scaling was undone.
        local = reducer.noise / loss_scale**2
        record.columns |= state.pipeline.estimate_noise(local, sq_norm, num_clients, int(counts.sum()))
    return multiplier


def _measure_local(state: TrainState, client: Client, record: ClientRecord) -> Tensor | None:
    """Log a client's own, unscaled gradient and return its multiplier."""
    if state.pipeline is None:
        return None
    gradients = [p.grad for p in client.replica.parameters if p.grad is not None]
    layers = layer_squared_norms(gradients) if state.pipeline.transform.needs_layers else None
    sq_norm = squared_norm(gradients)
    multiplier, columns = state.pipeline.update(sq_norm, state.counters.step, client.id, layers)
    record.columns |= columns
    return multiplier


def _ask_for_averaging(state: TrainState, record: ClientRecord) -> int:
    """SelSync: this client's vote."""
    if not isinstance(state.sync, SelectiveSynchronisation):
        return 0
    change, sq_norm = record.columns["grad_change"], record.columns["local_grad_sq_norm"]
    if has_changed(change, state.sync.threshold):
        return CHANGED
    return UNKNOWN if is_unknown(change, sq_norm) else 0


def _is_broken(state: TrainState, sq_norm: Tensor | None) -> bool:
    """Whether the step must not be taken; loss scaling looks after its own overflows."""
    mode = state.job.on_nonfinite
    if mode == "ignore" or sq_norm is None or state.loss_scaler.is_enabled():
        return False
    if not _looks_late(state) or mode == "skip":
        return not bool(torch.isfinite(sq_norm))
    # A run that is to end may end a little later.
    broken = ~torch.isfinite(sq_norm)
    state.is_broken = broken if state.is_broken is None else state.is_broken | broken
    return state.counters.step % _LOOK_EVERY == 0 and bool(state.is_broken)


def _looks_late(state: TrainState) -> bool:
    """Whether looking at a number makes the host wait for the device."""
    return state.device.type == "cuda"


def _nonfinite_text(state: TrainState, whose: str) -> str:
    return f"{whose} is not finite{'; the step is skipped' if state.job.on_nonfinite == 'skip' else ''}"


def _update(
    state: TrainState,
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
