"""Section of a job file: what happens between the reduced gradient and the optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import (
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    StrictBool,
    model_serializer,
    model_validator,
)

from hpclbfl.config.sections.base import (
    Fraction,
    Nested,
    NonNegativeFloat,
    NonNegativeInt,
    Number,
    PositiveFloat,
    PositiveInt,
    Section,
)

NOISE_DECAY = 0.95
"""Of the noise scale where a job asks for it without saying so."""
NOISE_EVERY = 4
"""Steps between its estimates there: the clients' own norms cost a pass over the gradient."""


class TransformConfig(Section):
    """A gradient transform; see `hpclbfl.gradients.GradientTransform`."""

    name: str
    """Which one."""

    place: ClassVar[int] = 0
    """Among those that come with the package, where the job states no order."""

    @classmethod
    def of_section(cls, gradients: GradientsConfig) -> TransformConfig | None:
        """What a job's section `gradients` says of it; None: it is not asked for."""
        return None


class DetectorConfig(Section):
    """A detector of critical phases, by a change of the gradient; see `hpclbfl.gradients.change.Detector`."""

    name: str
    """Which one."""
    threshold: NonNegativeFloat | None = None
    """Of its change, from which it fires; null: that of the section that names it, or else the usual one."""

    scaler_threshold: ClassVar[float] = 0.5
    """Of the change, from which a scaler acts whose job states none."""
    averaging_threshold: ClassVar[float] = 0.5
    """Of the change of a client's own gradient, from which SelSync averages where the job states none."""
    takes_norms_only: ClassVar[bool] = True
    """Whether it looks at the norms of the gradient alone, as any script has them."""

    def check(self, key: str, job: Any) -> None:
        """Refuse a job, a `JobConfig`, that names it under `key` and does not fit it. Raises ValueError."""

    @model_serializer(mode="wrap")
    def _without_default_threshold(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Older versions had none, and their runs are found by what they wrote.
        values: dict[str, Any] = handler(self)
        if self.threshold is None:
            values.pop("threshold", None)
        return values


DetectorName = Annotated[str | SerializeAsAny[DetectorConfig], Nested("detector")]
"""One that comes with the package, by its name or with its keys, or one of the user's own."""
WatchedDetector = Annotated[str | SerializeAsAny[DetectorConfig], Nested("detector", watched=True)]
"""The same; it is measured in every step, and its change can be asked for with `hpclbfl.gradients.chain.Chain`."""


class NoiseScaleConfig(Section):
    """The gradient noise scale, estimated in every step of a shared model."""

    decay: Fraction = NOISE_DECAY
    """Weight of the averages over steps, of which b_simple is the ratio, against the newest step."""


Refresh = Annotated[str | SerializeAsAny[DetectorConfig], Nested("detector", words=("every", "drift"))]


class TeacherConfig(Section):
    """The teacher A(.) of Eq. 5, which maps the gradient of a large batch to one of a small batch.

    It is trained from the clients' own gradients, at first in the steps from `start_step` on.
    """

    kind: str
    """Which teacher."""
    train_steps: PositiveInt = 2
    """Steps of a training, in which the clients' own gradients are kept; while clients train alone, first steps of as
    many rounds."""
    start_step: NonNegativeInt = 0
    """First step that may train it; until then it leaves gradients as they are."""
    refresh: Refresh = "every"
    """When it is trained again. every: after so many steps; drift: when the share of fresh residuals that it predicts
    has halved since the training, under mse when its error has doubled; or a detector of a change of the gradient,
    which fires where the change reaches `threshold`."""
    every: PositiveInt = 25
    """every: steps between two trainings; drift: between two looks at fresh gradients, 5 by default; under a detector
    the fewest steps between two trainings, 5 by default."""
    threshold: NonNegativeFloat | None = None
    """Of the detector; null: its own for a scaler."""

    needs_noise: ClassVar[bool] = False
    """Whether it takes the running estimate of the gradient's noise, which is then measured."""

    @model_validator(mode="before")
    @classmethod
    def _default_interval(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("every") is not None or "refresh" not in values:
            return values
        return {**values, "every": 25 if values["refresh"] == "every" else 5}

    @model_validator(mode="after")
    def _threshold_of_detector(self) -> TeacherConfig:
        if self.threshold is not None and self.refresh in ("every", "drift"):
            raise ValueError(f"'threshold' goes with a detector as 'refresh', not with {self.refresh}")
        return self

    def check_batches(self, counts: Sequence[int], sums: bool, alone: bool) -> None:
        """Refuse batches from which it cannot learn, or that have the noise already that it would add.

        Args:
            counts: [C] samples of every client in a step.
            sums: whether gradients are summed over the clients, always or for a time.
            alone: whether clients train alone, always or for a time.

        Raises:
            ValueError: one line.
        """
        taking_part = [count for count in counts if count]
        if len(taking_part) < 2:
            raise ValueError(
                f"learns from how clients' gradients differ: needs at least two with samples, not {len(taking_part)}"
            )
        small, batches = self.imitated_batch, []
        if sums:
            batches.append((sum(taking_part), "the global batch"))
        if alone:
            batches.append((min(taking_part), "the batch of a client that trains alone"))
        for size, what in batches:
            if small is not None and small >= size:
                raise ValueError(f"small_batch {small} must be below {what}, {size} samples")

    @property
    def imitated_batch(self) -> int | None:
        """b_small, samples; None: it imitates no batch of a certain size."""
        return None


class GradientsConfig(Section):
    """What happens between the clients' gradients and the optimizer."""

    scaler: Annotated[SerializeAsAny[TransformConfig], Nested("transform", "scaler")] | None = None
    """The step-up function of Eq. 6; its keys are `factor`, `threshold`, `when`, `duty` and `change`."""
    teacher: Annotated[SerializeAsAny[TeacherConfig], Nested("teacher")] | None = None
    """The teacher of Eq. 5: a mapping with `kind` and its keys, see below."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of the gradient, before the scaler's factor."""
    chain: Annotated[tuple[str | SerializeAsAny[TransformConfig], ...], Nested("transform", many=True)] | None = None
    """The transforms of the gradient in their order: `teacher`, `scaler` and `clip`, which have their settings above,
    and your own, such as `{name: mine.py:Centralise, strength: 2}`; null: the teacher, the clip, then the scaler."""
    weight_noise: Annotated[Number, Field(gt=0.0, le=1e6)] | None = None
    """s: noise in the clients' weights that makes the gradient's covariance 1 + s^2 times as large, as a batch of
    B / (1 + s^2) has it."""
    sample_noise: Annotated[Number, Field(gt=0.0, le=1e6)] | None = None
    """s: noise in the weights of each batch's samples that makes the gradient's covariance 1 + s^2 times as large, as a
    batch of 1 / (1 + s^2) of its size has it; also for one client, and for clients that train alone."""
    extrapolation_lr: PositiveFloat | None = None
    """Each client takes its gradient at a point extrapolated by this rate along its last one (extrapolated SGD)."""
    measure: StrictBool = True
    """Log the squared norm and its relative change also where nothing is scaled."""
    watch: Annotated[
        tuple[str | SerializeAsAny[DetectorConfig], ...] | None, Nested("detector", many=True, watched=True)
    ] = None
    """Detectors of critical phases that are measured in every step and change nothing, such as
    `[squared_norm, {name: accordion, interval_epochs: 1}]`: the log has the change that each sees, and whether it
    fires, and a report compares them."""
    noise_scale: NoiseScaleConfig | None = None
    layers_every: PositiveInt | None = None
    """Log each parameter's squared norm every so many steps."""

    @model_validator(mode="after")
    def _fit(self) -> GradientsConfig:
        if not self.measure and (self.scaler or self.teacher or self.clip_norm or self.noise_scale or self.chain):
            raise ValueError(
                "'measure: false' leaves 'scaler', 'teacher', 'clip_norm', 'noise_scale' and 'chain' without their norm"
            )
        for key in ("weight_noise", "extrapolation_lr", "sample_noise"):
            if self.teacher is not None and getattr(self, key) is not None:
                raise ValueError(f"'teacher' does not go with '{key}', which changes the gradients that it learns from")
        for key in ("weight_noise", "noise_scale"):
            if self.sample_noise is not None and getattr(self, key) is not None:
                raise ValueError(f"'{key}' does not go with 'sample_noise'")
        if self.noise_scale is not None and self.weight_noise is not None:
            raise ValueError("'noise_scale' cannot be measured under 'weight_noise'")
        return self

    @model_serializer(mode="wrap")
    def _without_later_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Older versions had none, and their runs are found by what they wrote.
        values: dict[str, Any] = handler(self)
        for key in ("chain", "watch", "teacher", "sample_noise"):
            if getattr(self, key) is None:
                values.pop(key, None)
        return values

    @property
    def noise_every(self) -> int:
        """Steps from one estimate of the noise scale to the next."""
        return 1 if self.noise_scale is not None else NOISE_EVERY

    @property
    def noise_decay(self) -> float | None:
        """Of the noise scale's averages; None: it is not measured."""
        if self.noise_scale is not None:
            return self.noise_scale.decay
        # The averages reach back as many steps as with an estimate in each of them.
        return NOISE_DECAY**NOISE_EVERY if self.teacher is not None and self.teacher.needs_noise else None

    @property
    def shared_only(self) -> list[str]:
        """Keys in use that need gradients which are summed over the clients."""
        keys = ("weight_noise", "extrapolation_lr", "noise_scale", "layers_every")
        return [key for key in keys if getattr(self, key) is not None]
