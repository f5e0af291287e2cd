"""Sections of a job file: the end of the run, evaluation, and who carries the messages."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from hpclbfl.config.sections.base import Number, PositiveFloat, PositiveInt, Seconds, Section

Megabytes = Annotated[Number, Field(ge=1e-4, le=1e6)]


class StopConfig(Section):
    """When the run ends: the first one met."""

    epochs: PositiveFloat | None = None
    steps: PositiveInt | None = None
    samples: PositiveInt | None = None
    seconds: PositiveFloat | None = None
    """Training time, without evaluation and checkpoints."""
    top1: Annotated[Number, Field(gt=0.0, le=1.0)] | None = None
    """Test accuracy, as a fraction."""

    @model_validator(mode="after")
    def _some_end(self) -> StopConfig:
        if all(v is None for v in (self.epochs, self.steps, self.samples, self.seconds)):
            raise ValueError("give at least one of 'epochs', 'steps', 'samples', 'seconds' ('top1' may never come)")
        return self


class EvaluateConfig(Section):
    """How often the test accuracy is taken: every epoch unless said otherwise; always at the end, too."""

    every_epochs: PositiveFloat | None = None
    every_steps: PositiveInt | None = None
    splits: tuple[Literal["test", "train"], ...] = ("test",)
    batch_size: PositiveInt = 256

    @model_validator(mode="before")
    @classmethod
    def _every_epoch(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("every_epochs") is None and values.get("every_steps") is None:
            return {**values, "every_epochs": 1}
        return values

    @model_validator(mode="after")
    def _one_interval(self) -> EvaluateConfig:
        if self.every_epochs is not None and self.every_steps is not None:
            raise ValueError("give one of 'every_epochs' and 'every_steps'")
        return self

    @field_validator("splits")
    @classmethod
    def _test_is_there(cls, splits: tuple[str, ...]) -> tuple[str, ...]:
        if "test" not in splits or len(set(splits)) != len(splits):
            raise ValueError("must name 'test', and each split once")
        return splits


class CheckpointConfig(Section):
    """How often the state is saved: every 300 s unless said otherwise; always when asked to stop."""

    every_steps: PositiveInt | None = None
    every_s: PositiveFloat | None = None
    """Seconds of training, by rank 0's clock."""

    @model_validator(mode="before")
    @classmethod
    def _five_minutes(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("every_steps") is None and values.get("every_s") is None:
            return {**values, "every_s": 300}
        return values


class CommConfig(Section):
    """Who carries the messages; never changes the result."""

    engine: Literal["auto", "horovod", "mpi", "local"] = "auto"
    """auto: Horovod under MPI, local in a lone process; mpi: mpi4py alone, the fastest where all ranks are CPUs."""
    bucket_mb: Megabytes = 25.0
    """Size of the gradient buckets that are reduced at once, MB."""
    chunk_mb: Megabytes = 1.0
    """mpi: size of the pieces, small enough for a processor's cache, MB."""
    start_timeout_s: Seconds = 600.0
    """A rank that has waited so long for all to start ends the job."""
    stall_timeout_s: Seconds = 1800.0
    """A rank that waits longer than this for others ends the job, with the name of the one that is missing."""

    @model_validator(mode="after")
    def _own_keys(self) -> CommConfig:
        if self.chunk_mb != 1.0 and self.engine != "mpi":
            raise ValueError(f"'chunk_mb' goes with engine mpi, not {self.engine}")
        return self
