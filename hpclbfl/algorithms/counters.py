"""How far a run is; equal on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter

from hpclbfl.core.errors import DataError
from hpclbfl.core.fitting import validated

_Count = Annotated[int, Field(ge=0, lt=2**53)]
_COUNT: TypeAdapter[int] = TypeAdapter(_Count)
_COUNTS: TypeAdapter[list[int]] = TypeAdapter(list[_Count])
_SECONDS: TypeAdapter[float] = TypeAdapter(Annotated[float, Field(ge=0, lt=1e10, allow_inf_nan=False)])


class Counters:
    """See the module; a `hpclbfl.core.state.Stateful`.

    Args:
        num_clients: C.

    Attributes:
        positions: [C] samples that each client processed so far.
        averaged_at: [C] the same at the last averaging.
        averaged_step: optimizer steps before the last averaging; 0: there was none. Those that SelSync makes because it
            knows no change yet are not counted.
        step: optimizer steps taken.
        round: rounds that have ended.
        elapsed_s: training time of this rank, without evaluation.
    """

    def __init__(self, num_clients: int) -> None:
        self.positions: NDArray[np.int64] = np.zeros(num_clients, np.int64)
        self.averaged_at: NDArray[np.int64] = np.zeros(num_clients, np.int64)
        self.averaged_step = self.step = self.round = 0
        self.elapsed_s = 0.0

    @property
    def num_samples(self) -> int:
        """By all clients."""
        return int(self.positions.sum())

    @property
    def since_averaging(self) -> NDArray[np.int64]:
        """[C] samples of each client since the last averaging."""
        return self.positions - self.averaged_at

    def state_dict(self) -> dict[str, Any]:
        """See `hpclbfl.core.state.Stateful`."""
        return {
            "step": self.step,
            "round": self.round,
            "elapsed_s": self.elapsed_s,
            "positions": self.positions.tolist(),
            "averaged_at": self.averaged_at.tolist(),
            "averaged_step": self.averaged_step,
        }

    def check_state(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        for key in ("step", "round"):
            validated(_COUNT, found, key)
        validated(_SECONDS, found, "elapsed_s")
        for key in ("positions", "averaged_at"):
            if len(validated(_COUNTS, found, key)) != len(self.positions):
                raise DataError(f"{key} has {len(found[key])} clients, not {len(self.positions)}")
        # Older versions did not save it.
        if "averaged_step" in found and validated(_COUNT, found, "averaged_step") > found["step"]:
            raise DataError("averaged_step is ahead of step")
        if any(last > now for last, now in zip(found["averaged_at"], found["positions"], strict=True)):
            raise DataError("averaged_at is ahead of positions")

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        self.positions = np.array(found["positions"], np.int64)
        self.averaged_at = np.array(found["averaged_at"], np.int64)
        self.step, self.round, self.elapsed_s = found["step"], found["round"], found["elapsed_s"]
        # Of an older version's averagings nothing is said.
        self.averaged_step = found.get("averaged_step", self.step)
