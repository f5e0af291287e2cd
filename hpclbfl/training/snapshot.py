"""An experiment's state as plain values: all that the next step depends on, a part per client and a shared one.

Random numbers need none: they are keyed by (seed, client, step) and (seed, pass, sample).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hpclbfl.algorithms.replicas import Client
from hpclbfl.core.errors import DataError
from hpclbfl.gradients.pipeline import SHARED
from hpclbfl.training.evaluate import Score
from hpclbfl.training.state import Counters, TrainState


def take(state: TrainState) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """The shared part and those of this rank's clients; tensors are the experiment's own, not copies."""
    counters = state.counters
    shared: dict[str, Any] = {
        "step": counters.step,
        "round": counters.round,
        "elapsed_s": counters.elapsed_s,
        "positions": counters.positions.tolist(),
        "averaged_at": counters.averaged_at.tolist(),
        "averaged_step": counters.averaged_step,
        "plan": state.plan,
        "policy": state.policy_state,
        "local_steps": None if state.local_steps is None else state.local_steps.tolist(),
        "score": _score(state),
        "model": None,
    }
    if state.pipeline is not None:
        shared["pipeline"] = state.pipeline.states.get(SHARED)
        shared["noise"] = state.pipeline.noise_state
    if state.optimizer is not None:
        shared["model"] = state.mean.state
        shared["optimizer"] = state.optimizer.state_dict()
        shared["loss_scaler"] = state.loss_scaler.state_dict()
    return shared, {client.id: _take_client(state, client) for client in state.clients}


def _score(state: TrainState) -> tuple[int, float, float, float] | None:
    """Without metrics, which nothing depends on."""
    if state.score is None:
        return None
    step, score = state.score
    return step, score.loss, score.top1, score.top5


def _take_client(state: TrainState, client: Client) -> dict[str, Any]:
    part: dict[str, Any] = {"buffers": dict(client.replica.module.named_buffers())}
    if state.pipeline is not None:
        part["pipeline"] = state.pipeline.states.get(client.id)
    if client.optimizer is not None:
        part["model"] = client.replica.state
        part["optimizer"] = client.optimizer.state_dict()
        part["loss_scaler"] = client.loss_scaler.state_dict()
    if state.extrapolation is not None and client.id in state.extrapolation.gradients:
        last = state.extrapolation.gradients[client.id]
        order = [last.get(parameter) for parameter in state.mean.parameters]
        part["extrapolation"] = (state.extrapolation.factors[client.id], order)
    return part


def restore(state: TrainState, shared: Mapping[str, Any], clients: Mapping[int, Mapping[str, Any]]) -> None:
    """Put a freshly built experiment into the state that was taken.

    Raises:
        DataError: parts are missing or of another shape.
    """
    try:
        state.counters = Counters(
            positions=np.array(shared["positions"], np.int64),
            averaged_at=np.array(shared["averaged_at"], np.int64),
            # Older versions did not save it: nothing is said of their averagings.
            averaged_step=shared.get("averaged_step", shared["step"]),
            step=shared["step"],
            round=shared["round"],
            elapsed_s=shared["elapsed_s"],
        )
        state.plan, state.policy_state = shared["plan"], shared["policy"]
        # Older versions did not save it.
        step, *score = shared.get("score") or (0,)
        state.score = (step, Score(*score)) if score else None
        state.local_steps = None if shared["local_steps"] is None else np.array(shared["local_steps"], np.int64)
        if shared["model"] is None and state.optimizer is not None:
            averaged_at = state.counters.averaged_at
            state.start_local_training()
            state.counters.averaged_at = averaged_at
        if state.pipeline is not None:
            if shared["pipeline"] is not None:
                state.pipeline.states[SHARED] = shared["pipeline"]
            state.pipeline.noise_state = shared["noise"]
        if state.optimizer is not None:
            state.mean.state.copy_(shared["model"])
            state.optimizer.load_state_dict(shared["optimizer"])
            state.loss_scaler.load_state_dict(shared["loss_scaler"])
        for client in state.clients:
            _restore_client(state, client, clients[client.id])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"a checkpoint does not fit this job: {type(error).__name__}: {error}") from error


def _restore_client(state: TrainState, client: Client, part: Mapping[str, Any]) -> None:
    if client.optimizer is not None:
        client.replica.state.copy_(part["model"])
        client.optimizer.load_state_dict(part["optimizer"])
        client.loss_scaler.load_state_dict(part["loss_scaler"])
    for name, buffer in client.replica.module.named_buffers():
        buffer.copy_(part["buffers"][name])
    if state.pipeline is not None and part["pipeline"] is not None:
        state.pipeline.states[client.id] = part["pipeline"]
    if state.extrapolation is not None and "extrapolation" in part:
        factor, order = part["extrapolation"]
        parameters = state.mean.parameters
        kept = {p: g.to(p.device) for p, g in zip(parameters, order, strict=True) if g is not None}
        state.extrapolation.gradients[client.id], state.extrapolation.factors[client.id] = kept, factor
