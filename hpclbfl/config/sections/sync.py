"""Section of a job file: when gradients are reduced and when parameters are averaged."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from hpclbfl.config.sections.base import NonNegativeFloat, PositiveFloat, PositiveInt, Section, with_threshold
from hpclbfl.config.thresholds import SELSYNC

Weights = Literal["samples", "shards", "uniform"]
"""Of the clients in an averaging. samples: by those that each processed since the last averaging, whatever it owns;
shards: by those that it owns, n_k / n as in federated averaging by McMahan et al. (equal where nobody owns any, under
`partition: iid` with all samples dealt out anew in every pass); uniform: equal among those that processed any. An
evaluation between two averagings, and model.pt, weigh the clients in the same way."""


class BspConfig(Section):
    """Bulk-synchronous: gradients are summed over all clients in every step (paper, Eq. 1 with H = 1)."""

    kind: Literal["bsp"] = "bsp"


class FedAvgConfig(Section):
    """Federated averaging: clients train alone for H steps, then parameters are averaged (paper, Eq. 1b)."""

    kind: Literal["fedavg"]
    local_steps: PositiveInt | Literal["proportional"] | None = None
    """H: optimizer steps of every client between two averagings; proportional: of each client in proportion to its
    speed."""
    max_local_steps: PositiveInt | None = None
    """local_steps proportional: H of the fastest client."""
    local_epochs: PositiveFloat | None = None
    """Instead of local_steps: passes over the training set (the clients' global count) between two averagings, rounded
    to whole steps, one at least."""
    weights: Weights = "samples"
    optimizer_state: Literal["keep", "average", "reset"] = "keep"
    """What becomes of momentum and the like at an averaging."""

    @field_validator("local_steps", mode="before")
    @classmethod
    def _number_or_word(cls, value: Any) -> Any:
        if isinstance(value, bool | list | dict) or (isinstance(value, str) and value != "proportional"):
            raise ValueError("should be a whole number above 0, or 'proportional'")
        return value

    @model_validator(mode="after")
    def _one_length(self) -> FedAvgConfig:
        if (self.local_steps is None) == (self.local_epochs is None):
            raise ValueError("give exactly one of 'local_steps' and 'local_epochs'")
        if (self.max_local_steps is not None) != (self.local_steps == "proportional"):
            raise ValueError("'max_local_steps' goes with local_steps: proportional, and only with it")
        return self


class PostLocalConfig(Section):
    """Post-local SGD: bulk-synchronous until a step, then federated averaging."""

    kind: Literal["post_local"]
    switch_step: PositiveInt
    """Steps with a shared model."""
    local_steps: PositiveInt
    """H, afterwards."""
    weights: Weights = "samples"
    optimizer_state: Literal["keep", "average", "reset"] = "keep"


class SelSyncConfig(Section):
    """Selective synchronisation: clients train alone until one of them sees its gradient change.

    While no change is known, in the first 25 steps (under squared_norm: in the first one), every step averages.
    """

    kind: Literal["selsync"]
    threshold: NonNegativeFloat = 0.0
    """Of the change of a client's own gradient, from which on all average; default 0.05, under squared_norm 1 (see
    `hpclbfl.config.thresholds`)."""
    change: Literal["squared_norm", "selsync"] = "selsync"
    """selsync: of the layers' norms, smoothed over 25 steps; squared_norm: Eq. 8."""
    weights: Weights = "samples"
    optimizer_state: Literal["keep", "average", "reset"] = "keep"

    @model_validator(mode="before")
    @classmethod
    def _default_threshold(cls, values: Any) -> Any:
        return with_threshold(values, SELSYNC, "selsync")


LocalConfig = FedAvgConfig | PostLocalConfig | SelSyncConfig
"""Those under which clients train alone, always or for a time."""
SyncConfig = Annotated[BspConfig | FedAvgConfig | PostLocalConfig | SelSyncConfig, Field(discriminator="kind")]
