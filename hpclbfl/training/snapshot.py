"""An experiment's state as plain values: all that the next step depends on, a part per client and a shared one.

Random numbers need none: they are keyed by (seed, client, step) and (seed, pass, sample).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

import numpy as np

from hpclbfl.algorithms.replicas import Client
from hpclbfl.core.errors import DataError
from hpclbfl.gradients.pipeline import SHARED
from hpclbfl.training.evaluate import Score
from hpclbfl.training.state import Counters, Experiment


def take(exp: Experiment) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """The shared part and those of this rank's clients; tensors are the experiment's own, not copies."""
    counters = exp.counters
    shared: dict[str, Any] = {
        "step": counters.step,
        "round": counters.round,
        "elapsed_s": counters.elapsed_s,
        "positions": counters.positions.tolist(),
        "averaged_at": counters.averaged_at.tolist(),
        "averaged_step": counters.averaged_step,
        "plan": exp.plan,
        "policy": exp.policy_state,
        "local_steps": None if exp.local_steps is None else exp.local_steps.tolist(),
        "score": None if exp.score is None else (exp.score[0], *astuple(exp.score[1])),
        "model": None,
    }
    if exp.pipeline is not None:
        shared["pipeline"] = exp.pipeline.states.get(SHARED)
        shared["noise"] = exp.pipeline.noise_state
    if exp.optimizer is not None:
        shared["model"] = exp.mean.state
        shared["optimizer"] = exp.optimizer.state_dict()
        shared["loss_scaler"] = exp.loss_scaler.state_dict()
    return shared, {client.id: _take_client(exp, client) for client in exp.clients}


def _take_client(exp: Experiment, client: Client) -> dict[str, Any]:
    part: dict[str, Any] = {"buffers": dict(client.replica.module.named_buffers())}
    if exp.pipeline is not None:
        part["pipeline"] = exp.pipeline.states.get(client.id)
    if client.optimizer is not None:
        part["model"] = client.replica.state
        part["optimizer"] = client.optimizer.state_dict()
        part["loss_scaler"] = client.loss_scaler.state_dict()
    if exp.extrapolation is not None and client.id in exp.extrapolation.gradients:
        last = exp.extrapolation.gradients[client.id]
        order = [last.get(parameter) for parameter in exp.mean.parameters]
        part["extrapolation"] = (exp.extrapolation.factors[client.id], order)
    return part


def restore(exp: Experiment, shared: Mapping[str, Any], clients: Mapping[int, Mapping[str, Any]]) -> None:
    """Put a freshly built experiment into the state that was taken.

    Raises:
        DataError: parts are missing or of another shape.
    """
    try:
        exp.counters = Counters(
            positions=np.array(shared["positions"], np.int64),
            averaged_at=np.array(shared["averaged_at"], np.int64),
            # Older versions did not save it: nothing is said of their averagings.
            averaged_step=shared.get("averaged_step", shared["step"]),
            step=shared["step"],
            round=shared["round"],
            elapsed_s=shared["elapsed_s"],
        )
        exp.plan, exp.policy_state = shared["plan"], shared["policy"]
        # Older versions did not save it.
        step, *score = shared.get("score") or (0,)
        exp.score = (step, Score(*score)) if score else None
        exp.local_steps = None if shared["local_steps"] is None else np.array(shared["local_steps"], np.int64)
        if shared["model"] is None and exp.optimizer is not None:
            averaged_at = exp.counters.averaged_at
            exp.start_local_training()
            exp.counters.averaged_at = averaged_at
        if exp.pipeline is not None:
            if shared["pipeline"] is not None:
                exp.pipeline.states[SHARED] = shared["pipeline"]
            exp.pipeline.noise_state = shared["noise"]
        if exp.optimizer is not None:
            exp.mean.state.copy_(shared["model"])
            exp.optimizer.load_state_dict(shared["optimizer"])
            exp.loss_scaler.load_state_dict(shared["loss_scaler"])
        for client in exp.clients:
            _restore_client(exp, client, clients[client.id])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"a checkpoint does not fit this job: {type(error).__name__}: {error}") from error


def _restore_client(exp: Experiment, client: Client, part: Mapping[str, Any]) -> None:
    if client.optimizer is not None:
        client.replica.state.copy_(part["model"])
        client.optimizer.load_state_dict(part["optimizer"])
        client.loss_scaler.load_state_dict(part["loss_scaler"])
    for name, buffer in client.replica.module.named_buffers():
        buffer.copy_(part["buffers"][name])
    if exp.pipeline is not None and part["pipeline"] is not None:
        exp.pipeline.states[client.id] = part["pipeline"]
    if exp.extrapolation is not None and "extrapolation" in part:
        factor, order = part["extrapolation"]
        parameters = exp.mean.parameters
        kept = {p: g.to(p.device) for p, g in zip(parameters, order, strict=True) if g is not None}
        exp.extrapolation.gradients[client.id], exp.extrapolation.factors[client.id] = kept, factor
