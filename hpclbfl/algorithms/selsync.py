"""SelSync: local steps until some client's gradient changes, then an averaging of all.

S. Tyagi, M. Swany, "Accelerating Distributed ML Training via Selective Synchronization", IEEE CLUSTER 2023. Each client
watches the relative change of its own gradient (`hpclbfl.gradients.change`); where one reaches the threshold, all
average their parameters after that step. As in the authors' code, a change that is not known yet asks for an averaging,
too: under `change: selsync` each of the first 25 steps ends with one, under `squared_norm` the first one.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from hpclbfl.config.components import ALGORITHMS
from hpclbfl.config.sections import LocalConfig
from hpclbfl.config.sections.base import NonNegativeFloat, with_threshold
from hpclbfl.config.thresholds import SELSYNC


class SelSyncConfig(LocalConfig):
    """Clients train alone until one of them sees its gradient change.

    While no change is known, in the first 25 steps (under squared_norm: in the first one), every step averages.
    """

    threshold: NonNegativeFloat = 0.0
    """Of the change of a client's own gradient, from which on all average; default 0.05, under squared_norm 1 (see
    `hpclbfl.config.thresholds`)."""
    change: Literal["squared_norm", "selsync"] = "selsync"
    """selsync: of the layers' norms, smoothed over 25 steps; squared_norm: Eq. 8."""

    @model_validator(mode="before")
    @classmethod
    def _default_threshold(cls, values: Any) -> Any:
        return with_threshold(values, SELSYNC, "selsync")

    @property
    def title(self) -> str:
        """See `AlgorithmConfig`."""
        return "SelSync"

    @property
    def watched_change(self) -> Literal["squared_norm", "selsync"]:
        """See `AlgorithmConfig`."""
        return self.change

    def check(self, job: Any) -> None:
        """See `AlgorithmConfig`."""
        super().check(job)
        if not job.gradients.measure:
            raise ValueError("sync selsync needs 'gradients.measure: true'")
        if job.gradients.scaler is not None and job.gradients.scaler.change != self.change:
            raise ValueError("sync.change and gradients.scaler.change must agree: a run has one change metric")


class SelectiveSynchronisation:
    """See `hpclbfl.algorithms.Synchroniser`.

    Args:
        threshold: of the change of a client's gradient.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def shared(self, step: int) -> bool:
        """Never: every client has its own model."""
        return False

    def needs_vote(self, step: int) -> bool:
        """Always: any client may ask for an averaging."""
        return True

    def averages(self, step: int, fired: bool) -> bool:
        """Where a client asked."""
        return fired

    def why_never(self, step: int, num_averagings: int) -> str:
        """No change was large enough; averagings while none was known do not count."""
        if num_averagings >= step:
            return ""
        first = "step" if num_averagings == 1 else f"{num_averagings} steps"
        after = f" after the first {first}" if num_averagings else ""
        return f"no change of a client's gradient reached sync.threshold {self.threshold:g}{after}"


@ALGORITHMS.register("selsync", SelSyncConfig)
def make_selsync(config: SelSyncConfig, global_batch_size: int, num_train: int) -> SelectiveSynchronisation:
    """See the module."""
    return SelectiveSynchronisation(config.threshold)
