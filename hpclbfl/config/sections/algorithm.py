"""Section `sync` of a job file: what all algorithms share."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from hpclbfl.config.part_names import brief
from hpclbfl.config.sections.base import Section
from hpclbfl.config.sections.gradients import DetectorConfig


class AlgorithmConfig(Section):
    """What the clients do in a step, and when they talk; see `hpclbfl.algorithms`.

    By itself that of clients which share a model and sum their gradients in every step.
    """

    kind: str
    """Which algorithm."""

    trains_alone: ClassVar[bool] = False
    """Whether clients train models of their own, always or for a time."""
    sums_gradients: ClassVar[bool] = True
    """Whether gradients are summed over the clients, always or for a time."""

    @property
    def title(self) -> str:
        """What it is called, in a few words."""
        return brief(self.kind)

    @property
    def watched_change(self) -> str | DetectorConfig | None:
        """What tells the change of a gradient that it decides by; None: nothing."""
        return None

    @property
    def averaged_by(self) -> str:
        """By what clients are weighted in an averaging, see `LocalConfig.weights`."""
        return "samples"

    @property
    def optimizer_state_after(self) -> str:
        """What becomes of momentum and the like at an averaging, see `LocalConfig.optimizer_state`."""
        return "keep"

    @property
    def steps_of_fastest(self) -> int | None:
        """H of the fastest client where H follows the clients' speed; None: it does not."""
        return None

    def period(self, global_batch_size: int, num_train: int) -> int:
        """Steps between two synchronisations; 1 where the clients decide.

        Args:
            global_batch_size: B, samples per step.
            num_train: N, size of the training set.
        """
        return 1

    def rounding(self, global_batch_size: int, num_train: int) -> str:
        """A line that tells what is not exactly as the section asks for; empty: all is."""
        return ""

    def check(self, job: Any) -> None:
        """Refuse a job, a `JobConfig`, that this algorithm does not fit. Raises ValueError."""


class LocalConfig(AlgorithmConfig):
    """What algorithms share under which clients train models of their own."""

    weights: Literal["samples", "shards", "uniform"] = "samples"
    """Of the clients in an averaging. samples: by those that each processed since the last averaging, whatever it owns;
    shards: by those that it owns, n_k / n as in federated averaging by McMahan et al. (equal where nobody owns any,
    under a partition that reshuffles); uniform: equal among those that processed any. An evaluation between two
    averagings, and model.pt, weigh the clients in the same way."""
    optimizer_state: Literal["keep", "average", "reset"] = "keep"
    """What becomes of momentum and the like at an averaging."""

    trains_alone: ClassVar[bool] = True
    sums_gradients: ClassVar[bool] = False

    @property
    def averaged_by(self) -> str:
        """See `AlgorithmConfig`."""
        return self.weights

    @property
    def optimizer_state_after(self) -> str:
        """See `AlgorithmConfig`."""
        return self.optimizer_state

    def check(self, job: Any) -> None:
        """See `AlgorithmConfig`."""
        if not self.sums_gradients and job.gradients.shared_only:
            keys = ", ".join(f"gradients.{key}" for key in job.gradients.shared_only)
            raise ValueError(f"{keys}: for gradients that are summed over clients, under sync bsp and post_local")
