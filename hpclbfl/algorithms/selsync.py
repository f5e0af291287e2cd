"""SelSync: local steps until some client's gradient changes, then an averaging of all.

S. Tyagi, M. Swany, "Accelerating Distributed ML Training via Selective Synchronization", IEEE CLUSTER 2023. Each client
watches the relative change of its own gradient (`hpclbfl.gradients.change`); where one reaches the threshold, all
average their parameters after that step. As in the authors' code, a change that is not known yet asks for an averaging,
too: under `change: selsync` each of the first 25 steps ends with one, under `squared_norm` the first one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from hpclbfl.algorithms.base import LocalTraining
from hpclbfl.algorithms.flags import CHANGED, UNKNOWN
from hpclbfl.config.component_configs import with_threshold
from hpclbfl.config.components import ALGORITHMS
from hpclbfl.config.sections import DetectorConfig, DetectorName, LocalConfig
from hpclbfl.config.sections.base import NonNegativeFloat
from hpclbfl.gradients.change import has_changed, is_unknown

if TYPE_CHECKING:
    from hpclbfl.algorithms.local_client import LocalClient
    from hpclbfl.algorithms.record import StepRecord
    from hpclbfl.algorithms.state import RankState


class SelSyncConfig(LocalConfig):
    """Clients train alone until one of them sees its gradient change.

    While no change is known, in the first 25 steps (under squared_norm: in the first one), every step averages.
    """

    threshold: NonNegativeFloat = 0.0
    """Of the change of a client's own gradient, from which on all average; default: the detector's, 0.05 for selsync, 1
    for squared_norm."""
    change: DetectorName = "selsync"
    """selsync: of the layers' norms, smoothed over 25 steps; squared_norm: Eq. 8; another detector, see below; or one
    of your own."""

    @model_validator(mode="before")
    @classmethod
    def _default_threshold(cls, values: Any) -> Any:
        return with_threshold(values, "selsync", "averaging_threshold")

    @property
    def title(self) -> str:
        """See `AlgorithmConfig`."""
        return "SelSync"

    @property
    def watched_change(self) -> str | DetectorConfig:
        """See `AlgorithmConfig`."""
        return self.change

    def check(self, job: Any) -> None:
        """See `AlgorithmConfig`."""
        super().check(job)
        if not job.gradients.measure:
            raise ValueError("sync selsync needs 'gradients.measure: true'")
        if job.gradients.scaler is not None and job.gradients.scaler.change != self.change:
            raise ValueError("sync.change and gradients.scaler.change must agree: a run has one change metric")


@ALGORITHMS.register("selsync", SelSyncConfig)
class SelectiveSynchronisation(LocalTraining):
    """See the module.

    Args:
        config: of the job.
        global_batch_size, num_train: not used.
    """

    def __init__(self, config: SelSyncConfig, global_batch_size: int, num_train: int) -> None:
        self.threshold = config.threshold

    def exchanges_flags(self, step: int) -> bool:
        """Always: any client may ask for an averaging."""
        return True

    def ask(self, client: LocalClient, record: StepRecord) -> int:
        """CHANGED where the client's gradient did, UNKNOWN where there is nothing to compare it with yet."""
        columns = client.columns
        change, sq_norm = columns["grad_change"], columns["local_grad_sq_norm"]
        if has_changed(change, self.threshold):
            return CHANGED
        return UNKNOWN if is_unknown(change, sq_norm) else 0

    def averages(self, step: int, flags: int) -> bool:
        """Where a client asked."""
        return bool(flags & (CHANGED | UNKNOWN))

    def end_of_step(self, state: RankState, record: StepRecord, flags: int) -> bool:
        """An averaging that no change has asked for is not counted as one."""
        before = state.counters.averaged_step
        averaged = super().end_of_step(state, record, flags)
        if not flags & CHANGED:
            state.counters.averaged_step = before
        return averaged

    def why_never(self, step: int, num_averagings: int) -> str:
        """No change was large enough; averagings while none was known do not count."""
        if num_averagings >= step:
            return ""
        first = "step" if num_averagings == 1 else f"{num_averagings} steps"
        after = f" after the first {first}" if num_averagings else ""
        return f"no change of a client's gradient reached sync.threshold {self.threshold:g}{after}"
