"""A run's state as plain values: all that the next step depends on, a part per client and a shared one.

Whatever has something to remember is a `hpclbfl.core.state.Stateful` and is asked for it. Random numbers need none:
they are keyed by (seed, client, step) and (seed, pass, sample).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hpclbfl.algorithms.counters import Counters
from hpclbfl.algorithms.replicas import Replicas
from hpclbfl.algorithms.shared_model import SharedModel
from hpclbfl.core.errors import DataError
from hpclbfl.core.state import Stateful, states_of
from hpclbfl.training.memory import AlgorithmMemory, BatchSizes, NewestScore
from hpclbfl.training.state import TrainState


def state_of(state: TrainState) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """The shared part and those of this rank's clients; tensors are the run's own, not copies."""
    model = state.model
    return states_of(_shared_parts(state, model)), {c.id: states_of(_parts_of(model, c)) for c in model.clients}


def load_state(state: TrainState, step: int, shared: Any, clients: Mapping[int, Any]) -> None:
    """Put a freshly built run into the state of a checkpoint; nothing is changed before all of it has been checked.

    Args:
        step: of the checkpoint's name.
        shared, clients: its parts; those of this rank's clients by number.

    Raises:
        DataError: something is missing, or of another type or shape; one line that names it.
    """
    check_progress(shared, step, len(state.sizes))
    with _named("the shared part"):
        model = state.model
        if isinstance(model, SharedModel) and not state.algorithm.shares_model(step):
            model = state.replicas_of(model)
        parts = _shared_parts(state, model)
        for part in parts:
            part.check_state(shared)
    for client in model.clients:
        with _named(f"client {client.id}"):
            if not isinstance(clients.get(client.id), dict):
                raise DataError("is missing")
            for part in _parts_of(model, client):
                part.check_state(clients[client.id])
    try:
        state.use_model(model)
        for part in parts:
            part.load_state_dict(shared)
        for client in model.clients:
            for part in _parts_of(model, client):
                part.load_state_dict(clients[client.id])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"a checkpoint does not fit this job: {type(error).__name__}: {error}") from error


def check_progress(shared: Any, step: int, num_clients: int) -> None:
    """Check how far a checkpoint says that the run is.

    Args:
        shared: its shared part.
        step: of its name.
        num_clients: of the job.

    Raises:
        DataError: something is missing, or of another type or size; one line that names it.
    """
    with _named("the shared part"):
        if not isinstance(shared, dict):
            raise DataError("holds no mapping")
        Counters(num_clients).check_state(shared)
        if shared["step"] != step:
            raise DataError(f"step is {shared['step']}, not {step}")


def _shared_parts(state: TrainState, model: SharedModel | Replicas) -> list[Stateful]:
    learnt = [learner.memory for learner in state.learners]
    return [state.counters, BatchSizes(state), NewestScore(state), AlgorithmMemory(state), *learnt, model]


def _parts_of(model: Any, client: Any) -> list[Stateful]:
    parts: list[Stateful] = model.parts_of(client)
    return parts


@contextmanager
def _named(part: str) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"{part} does not fit this job: {error}") from error
