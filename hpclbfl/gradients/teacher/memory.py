"""What the teacher has learnt, and how far its training is: one for each rank, equal on all, in the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpclbfl.core.state import checkpointed


@checkpointed
@dataclass(frozen=True)
class Progress:
    """When the teacher was trained; steps count from 0."""

    begun: int = -1
    """First step of the newest training."""
    taught: int = 0
    """Training steps of it so far."""
    looked: int = -1
    """Last step of which it took the clients' gradients."""
    reference: float = math.nan
    """drift: the error of the first look after the training."""


class TeacherMemory:
    """A `hpclbfl.core.state.Stateful`."""

    def __init__(self) -> None:
        self.progress = Progress()
        self.learnt: Any = None
        """State of the kind; None until it is known what is trained."""

    @property
    def is_ready(self) -> bool:
        """Whether it has a place for what is learnt."""
        return self.learnt is not None

    def begin(self, learnt: Any) -> None:
        """Take the state of a teacher that has not learnt anything."""
        self.learnt = learnt

    def state_dict(self) -> dict[str, Any]:
        """See `hpclbfl.core.state.Stateful`."""
        return {"teacher": (self.progress, self.learnt)}

    def check_state(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        from hpclbfl.core.fitting import check_like

        check_like((Progress(), self.learnt), found.get("teacher"), "teacher")

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """See `hpclbfl.core.state.Stateful`."""
        from hpclbfl.core.fitting import placed_like

        self.progress, self.learnt = placed_like((Progress(), self.learnt), found["teacher"])
