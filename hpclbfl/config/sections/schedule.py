"""Section of a job file: what all schedules of the learning rate share."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from hpclbfl.config.sections.base import NonNegativeFloat, PositiveInt, Section


class ScheduleConfig(Section):
    """The learning rate over the run, as a function of the epoch (samples of all clients / training set size)."""

    kind: str
    """Which schedule."""
    warmup_epochs: NonNegativeFloat = 0.0
    """Linear warm-up over this many epochs: from 0 to lr, or from lr to the scaled rate where `scaling` is used."""
    scaling: Literal["none", "linear", "sqrt"] = "none"
    """linear: lr * B / reference_batch_size; sqrt: lr * sqrt(B / reference_batch_size)."""
    reference_batch_size: PositiveInt | None = None
    """The global batch size that lr was tuned for; with `scaling`, and only with it."""

    @model_validator(mode="after")
    def _scaling_has_a_reference(self) -> ScheduleConfig:
        if (self.scaling != "none") != (self.reference_batch_size is not None):
            given = "linear (or sqrt)" if self.scaling == "none" else self.scaling
            raise ValueError(f"'scaling: {given}' and 'reference_batch_size' go together")
        return self

    @property
    def ends_with_run(self) -> bool:
        """Whether its end is that of the run, and not stated yet."""
        return False

    def with_end(self, planned_epochs: float | None) -> ScheduleConfig:
        """Return the section with its end stated, where it takes that from the run's.

        Args:
            planned_epochs: where the run ends at the latest; None: only time or accuracy end it.
        """
        return self

    def check(self, job: Any) -> None:
        """Refuse a job, a `JobConfig`, that this schedule does not fit. Raises ConfigError."""
