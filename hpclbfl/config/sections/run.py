"""Sections of a job file: the end of the run, evaluation, checkpoints and communication."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from hpclbfl.config.sections.base import Number, PositiveFloat, PositiveInt, Seconds, Section

Megabytes = Annotated[Number, Field(ge=1e-4, le=1e6)]


class StopConfig(Section):
    """When the run ends: at the first of these limits.

    They are no part of what identifies a run: a finished run goes on when they are raised.
    """

    epochs: PositiveFloat | None = None
    """Passes over the training set, counted in samples of all clients."""
    steps: PositiveInt | None = None
    """Optimizer steps of every client."""
    samples: PositiveInt | None = None
    """Samples processed by all clients together."""
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
    """When the model is evaluated: every epoch by default, and always at the end."""

    every_epochs: PositiveFloat | None = None
    """Epochs between two evaluations."""
    every_steps: PositiveInt | None = None
    """Steps between two evaluations; instead of every_epochs."""
    splits: tuple[Literal["test", "train"], ...] = ("test",)
    """What it is evaluated on; `test` is always among them."""
    batch_size: PositiveInt = 256
    """Images at a time; does not change the result."""

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
    """When the state is saved: every 300 s of training by default, at the end, and when the run is asked to stop."""

    every_steps: PositiveInt | None = None
    """Steps between two checkpoints."""
    every_s: PositiveFloat | None = None
    """Seconds of training between two checkpoints, by rank 0's clock."""

    @model_validator(mode="before")
    @classmethod
    def _five_minutes(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("every_steps") is None and values.get("every_s") is None:
            return {**values, "every_s": 300}
        return values


class CommConfig(Section):
    """How ranks communicate; never changes the result."""

    engine: Literal["auto", "horovod", "mpi", "local"] = "auto"
    """auto: Horovod under MPI, local in a single process; mpi: mpi4py without Horovod, the fastest where all ranks are
    CPUs."""
    bucket_mb: Megabytes = 25.0
    """Size of the buckets in which gradients are reduced, MB."""
    chunk_mb: Megabytes = 1.0
    """mpi: size of the chunks of a bucket, small enough for a processor's cache, MB."""
    start_timeout_s: Seconds = 600.0
    """A rank that has waited this long for all ranks to start ends the job, seconds."""
    stall_timeout_s: Seconds = 1800.0
    """A rank that has waited this long for another one ends the job and names the missing rank, seconds."""

    @model_validator(mode="after")
    def _own_keys(self) -> CommConfig:
        if self.chunk_mb != 1.0 and self.engine != "mpi":
            raise ValueError(f"'chunk_mb' goes with engine mpi, not {self.engine}")
        return self
