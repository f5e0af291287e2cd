"""Whether a checkpoint fits the experiment that is to go on from it: types and shapes of all that is restored.

A checkpoint whose checksums are right may still be another program's, or made up. It is checked before anything is
changed, so that an older one can be taken instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from hpclbfl.algorithms.replicas import Client
from hpclbfl.batching import Plan
from hpclbfl.core.errors import DataError
from hpclbfl.core.text import shown
from hpclbfl.training.state import TrainState

_Count = Annotated[int, Field(ge=0, lt=2**53)]
_COUNT: TypeAdapter[int] = TypeAdapter(_Count)
_COUNTS: TypeAdapter[list[int]] = TypeAdapter(list[_Count])
_SECONDS: TypeAdapter[float] = TypeAdapter(Annotated[float, Field(ge=0, lt=1e10, allow_inf_nan=False)])

_SCORE: TypeAdapter[tuple[int, float, float, float]] = TypeAdapter(tuple[_Count, float, float, float])


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
        for key in ("step", "round"):
            _validated(_COUNT, shared, key)
        if shared["step"] != step:
            raise DataError(f"step is {shared['step']}, not {step}")
        _validated(_SECONDS, shared, "elapsed_s")
        for key in ("positions", "averaged_at"):
            if len(_validated(_COUNTS, shared, key)) != num_clients:
                raise DataError(f"{key} has {len(shared[key])} clients, not {num_clients}")
        if "averaged_step" in shared and _validated(_COUNT, shared, "averaged_step") > step:
            raise DataError("averaged_step is ahead of step")
        if shared.get("score") is not None:
            _validated(_SCORE, shared, "score")
        if any(last > now for last, now in zip(shared["averaged_at"], shared["positions"], strict=True)):
            raise DataError("averaged_at is ahead of positions")


def check_fits(state: TrainState, step: int, shared: Any, clients: Mapping[int, Any]) -> None:
    """Check a whole checkpoint against a freshly built experiment.

    Args:
        step: of its name.
        shared, clients: its parts; those of this rank's clients by number.

    Raises:
        DataError: something is missing, or of another type or shape; one line that names it.
    """
    check_progress(shared, step, len(state.sizes))
    is_local = shared.get("model") is None
    with _named("the shared part"):
        _check_plan(state, shared)
        if state.pipeline is not None:
            _check_states(state.pipeline.transform.init(), shared.get("pipeline"), "pipeline")
            _check_like(state.pipeline.noise_state, shared.get("noise"), "noise")
        if is_local and state.optimizer is not None and state.sync.shared(step + 1):
            raise DataError("model is missing")
        if not is_local:
            if state.optimizer is None:
                raise DataError("model is there, but this job's clients train alone")
            _check_like(state.mean.state, shared["model"], "model")
            _check_optimizer(state.optimizer, shared.get("optimizer"))
            _check_like(state.loss_scaler.state_dict(), shared.get("loss_scaler"), "loss_scaler")
    for client in state.clients:
        with _named(f"client {client.id}"):
            _check_client(state, client, clients.get(client.id), is_local)


def _check_plan(state: TrainState, shared: dict[str, Any]) -> None:
    for key, like in (("plan", state.plan), ("policy", state.policy_state)):
        found = shared.get(key)
        if type(found) is not type(like):
            raise DataError(f"{key} is a {type(found).__name__}, not a {type(like).__name__}")
        if is_dataclass(found) and not isinstance(found, type):
            _check_fields(type(like), found, key)
    plan: Plan = shared["plan"]
    total, most = sum(plan.sizes), max(state.num_train, state.job.batching.most)
    if state.job.batching.keeps_global_batch:
        most = sum(state.sizes)
    if len(plan.sizes) != len(state.sizes) or min(plan.sizes) < 0 or not 0 < total <= most:
        raise DataError(f"plan has the sizes {shown(plan.sizes)} for {len(state.sizes)} clients")
    steps = shared.get("local_steps")
    if (steps is None) != (state.local_steps is None):
        raise DataError("local_steps does not go with this job")
    if steps is not None and len(_validated(_COUNTS, shared, "local_steps")) != len(state.sizes):
        raise DataError(f"local_steps has {len(steps)} clients, not {len(state.sizes)}")


def _check_fields(kind: type[Any], found: Any, key: str) -> None:
    """Of a dataclass without tensors, against its own annotations."""
    try:
        TypeAdapter(kind).validate_json(json.dumps(asdict(found)), strict=True)
    except (ValidationError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{key} has a field of another type: {shown(found)}") from error


def _check_client(state: TrainState, client: Client, part: Any, is_local: bool) -> None:
    if not isinstance(part, dict):
        raise DataError("is missing")
    _check_like(dict(client.replica.module.named_buffers()), part.get("buffers"), "buffers")
    if state.pipeline is not None:
        _check_states(state.pipeline.transform.init(), part.get("pipeline"), "pipeline")
    if is_local:
        _check_like(state.mean.state, part.get("model"), "model")
        optimizer = client.optimizer if client.optimizer is not None else state.optimizer
        if optimizer is not None:
            _check_optimizer(optimizer, part.get("optimizer"))
        _check_like(client.loss_scaler.state_dict(), part.get("loss_scaler"), "loss_scaler")
    if state.extrapolation is not None and "extrapolation" in part:
        found = part["extrapolation"]
        parameters = state.mean.parameters
        if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], list):
            raise DataError("extrapolation is not a factor and a list of gradients")
        if len(found[1]) != len(parameters):
            raise DataError("extrapolation is not a factor and a gradient for each parameter")
        _check_like(1.0, found[0], "extrapolation")
        for parameter, gradient in zip(parameters, found[1], strict=True):
            if gradient is not None:
                _check_like(parameter.data, gradient, "extrapolation")


def _check_states(fresh: tuple[Any, ...], found: Any, key: str) -> None:
    """Of a chain of transforms; None: no step taken yet."""
    if found is not None:
        _check_like(fresh, found, key)


def _check_optimizer(optimizer: torch.optim.Optimizer, found: Any) -> None:
    """A fresh optimizer has all of its state, as zeros (see `optim.slots`), and the options of the job."""
    fresh = optimizer.state_dict()
    if not isinstance(found, dict):
        raise DataError("optimizer has no state")
    _check_like(fresh["state"], found.get("state"), "optimizer.state")
    groups = found.get("param_groups")
    if not isinstance(groups, list) or len(groups) != len(fresh["param_groups"]):
        raise DataError("optimizer.param_groups does not have the groups of this job")
    for number, (like, group) in enumerate(zip(fresh["param_groups"], groups, strict=True)):
        _check_group(like, group, f"optimizer.param_groups.{number}")


_MOVING = ("lr", "step")
"""Options of a group that change in training."""
_OF_DEVICE = ("fused", "foreach", "capturable")
"""Options that follow from the device."""


def _check_group(like: dict[str, Any], found: Any, key: str) -> None:
    if not isinstance(found, dict) or found.keys() != like.keys():
        raise DataError(f"{key} has other options than this job's")
    for name, value in like.items():
        if name in _MOVING:
            _check_like(value, found[name], f"{key}.{name}")
        elif name in _OF_DEVICE:
            if not isinstance(found[name], bool | None):
                raise DataError(f"{key}.{name} is {shown(found[name])}, not a truth value")
        else:
            # Plain values, of the same types all the way down: they can be compared.
            _check_like(value, found[name], f"{key}.{name}")
            if found[name] != value:
                raise DataError(f"{key}.{name} is {shown(found[name])}, not {shown(value)}")


def _check_like(like: Any, found: Any, key: str) -> None:
    """Compare types, keys, lengths, and the shapes of tensors, all the way down."""
    if isinstance(like, Tensor):
        if type(found) is not Tensor or found.layout != torch.strided or found.is_meta:
            raise DataError(f"{key} is a {type(found).__name__} without plain values, not a tensor")
        if found.shape != like.shape or found.dtype != like.dtype:
            raise DataError(
                f"{key} has shape {list(found.shape)} and type {found.dtype}, not {list(like.shape)} and {like.dtype}"
            )
    elif like is None:
        if found is not None and not isinstance(found, Tensor | int | float):
            raise DataError(f"{key} is a {type(found).__name__}")
    elif isinstance(like, bool | str) or not isinstance(like, int | float):
        if type(found) is not type(like):
            raise DataError(f"{key} is a {type(found).__name__}, not a {type(like).__name__}")
        _check_parts(like, found, key)
    elif isinstance(found, bool) or not isinstance(found, int | float):
        raise DataError(f"{key} is {shown(found)}, not a number")


def _check_parts(like: Any, found: Any, key: str) -> None:
    if is_dataclass(like):
        for field in fields(like):
            _check_like(getattr(like, field.name), getattr(found, field.name, None), f"{key}.{field.name}")
    elif isinstance(like, Mapping):
        if like.keys() != found.keys():
            raise DataError(f"{key} has the keys {shown(sorted(map(str, found)))}, not {shown(sorted(map(str, like)))}")
        for name in like:
            _check_like(like[name], found[name], f"{key}.{name}")
    elif isinstance(like, list | tuple):
        if len(like) != len(found):
            raise DataError(f"{key} has {len(found)} entries, not {len(like)}")
        for index, (one, other) in enumerate(zip(like, found, strict=True)):
            _check_like(one, other, f"{key}.{index}")


def _validated(adapter: TypeAdapter[Any], part: dict[str, Any], key: str) -> Any:
    try:
        return adapter.validate_python(part.get(key), strict=True)
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"]
        raise DataError(f"{key} is {shown(part.get(key))}: {message[0].lower()}{message[1:]}") from error


@contextmanager
def _named(part: str) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"{part} does not fit this job: {error}") from error
