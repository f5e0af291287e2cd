"""What the training loop itself must remember: batch sizes, the newest score, and the algorithm's own state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from hpclbfl.batching import Plan
from hpclbfl.core.errors import DataError
from hpclbfl.core.fitting import check_like, placed_like, validated
from hpclbfl.core.text import shown
from hpclbfl.training.evaluate import Score
from hpclbfl.training.state import TrainState

_Count = Annotated[int, Field(ge=0, lt=2**53)]
_COUNTS: TypeAdapter[list[int]] = TypeAdapter(list[_Count])
_SCORE: TypeAdapter[tuple[int, float, float, float]] = TypeAdapter(tuple[_Count, float, float, float])


class _Part:
    def __init__(self, state: TrainState) -> None:
        self._state = state


class BatchSizes(_Part):
    """The plan in force and what the next one depends on; a `hpclbfl.core.state.Stateful`."""

    def state_dict(self) -> dict[str, Any]:
        """See `hpclbfl.core.state.Stateful`."""
        steps = self._state.local_steps
        return {
            "plan": self._state.plan,
            "policy": self._state.policy_state,
            "local_steps": None if steps is None else steps.tolist(),
        }

    def check_state(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        state = self._state
        for key, like in (("plan", state.plan), ("policy", state.policy_state)):
            part = found.get(key)
            if type(part) is not type(like):
                raise DataError(f"{key} is a {type(part).__name__}, not a {type(like).__name__}")
            if is_dataclass(part) and not isinstance(part, type):
                _check_fields(type(like), part, key)
        plan: Plan = found["plan"]
        total, most = sum(plan.sizes), max(state.num_train, state.job.batching.most)
        if state.job.batching.keeps_global_batch:
            most = sum(state.sizes)
        if len(plan.sizes) != len(state.sizes) or min(plan.sizes) < 0 or not 0 < total <= most:
            raise DataError(f"plan has the sizes {shown(plan.sizes)} for {len(state.sizes)} clients")
        steps = found.get("local_steps")
        if (steps is None) != (state.local_steps is None):
            raise DataError("local_steps does not go with this job")
        if steps is not None and len(validated(_COUNTS, found, "local_steps")) != len(state.sizes):
            raise DataError(f"local_steps has {len(steps)} clients, not {len(state.sizes)}")

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        state, steps = self._state, found["local_steps"]
        state.plan, state.policy_state = found["plan"], found["policy"]
        state.local_steps = None if steps is None else np.array(steps, np.int64)


class NewestScore(_Part):
    """The newest evaluation; a `hpclbfl.core.state.Stateful`."""

    def state_dict(self) -> dict[str, Any]:
        """See `hpclbfl.core.state.Stateful`."""
        score = self._state.score
        if score is None:
            return {"score": None}
        step, found = score
        # Without metrics, which nothing depends on.
        return {"score": (step, found.loss, found.top1, found.top5)}

    def check_state(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        # Older versions did not save it.
        if found.get("score") is not None:
            validated(_SCORE, found, "score")

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        step, *score = found.get("score") or (0,)
        self._state.score = (step, Score(*score)) if score else None


class AlgorithmMemory(_Part):
    """What the algorithm remembers besides the models; a `hpclbfl.core.state.Stateful`."""

    def state_dict(self) -> dict[str, Any]:
        """See `hpclbfl.core.state.Stateful`."""
        own = self._state.algorithm.state_dict()
        return {"algorithm": own} if own else {}

    def check_state(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        own = self._state.algorithm.state_dict()
        if own:
            check_like(own, found.get("algorithm"), "algorithm")

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        own = self._state.algorithm.state_dict()
        if own:
            self._state.algorithm.load_state_dict(placed_like(own, found["algorithm"]))


def _check_fields(kind: type[Any], found: Any, key: str) -> None:
    """Of a dataclass without tensors, against its own annotations."""
    try:
        TypeAdapter(kind).validate_json(json.dumps(asdict(found)), strict=True)
    except (ValidationError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{key} has a field of another type: {shown(found)}") from error
