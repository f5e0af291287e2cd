"""When the teacher is trained, and its place among the transforms: before the clip and the scaler.

A training takes `train_steps` steps; in each of them the clients' own gradients are kept, ranks exchange what is to be
learnt of them, the teacher that there is is tested on it, and then it is learnt. Between two trainings what was learnt
is frozen. |G|^2, Eq. 8 and the noise scale are those of the gradient as it came; the clip sees what the teacher left.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny

from hpclbfl.config.component_configs import detector_config
from hpclbfl.config.components import DETECTORS, TEACHERS, TRANSFORMS
from hpclbfl.config.sections import DetectorConfig, GradientsConfig, TeacherConfig, TransformConfig
from hpclbfl.core.state import checkpointed
from hpclbfl.gradients import Context, Metrics
from hpclbfl.gradients.change import ChangeState, Detector, unknown
from hpclbfl.gradients.detectors.squared_norm import SquaredNormChange
from hpclbfl.gradients.teacher import kind
from hpclbfl.gradients.teacher.memory import Progress, TeacherMemory

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hpclbfl.gradients.gradient import Gradient, Layout
    from hpclbfl.gradients.learning import ClientGradients
else:
    from hpclbfl.core.lazy import lazy

    torch = lazy("torch")


class TeacherTransformConfig(TransformConfig):
    """The teacher as a transform; what it is stands under `gradients.teacher`."""

    name: Literal["teacher"] = Field("teacher", exclude=True)
    teacher: SerializeAsAny[TeacherConfig]
    """See `gradients.teacher`."""

    place: ClassVar[int] = 0

    @classmethod
    def of_section(cls, gradients: GradientsConfig) -> TransformConfig | None:
        """See `TransformConfig`."""
        return None if gradients.teacher is None else cls(name="teacher", teacher=gradients.teacher)


def _no() -> Tensor:
    return torch.zeros((), dtype=torch.bool)


@checkpointed
@dataclass(frozen=True)
class TeacherState:
    """Of one stream of gradients: a client's, or the shared model's."""

    change: ChangeState = field(default_factory=ChangeState)
    """Eq. 8's."""
    detector: Any = None
    """State of the detector that asks for a training; None where none does."""
    asks: Tensor = field(default_factory=_no)
    """Whether it has fired since the last training, 0-d."""


class TeacherTransform:
    """A `hpclbfl.gradients.GradientTransform` and `hpclbfl.gradients.learning.Learner`."""

    is_identity = False

    def __init__(self, config: TeacherConfig) -> None:
        self.config = config
        self.kind: kind.Kind[Any, Any] = TEACHERS.make(config)
        self.memory = TeacherMemory()
        self._change = SquaredNormChange() if getattr(self.kind, "needs_change", False) else None
        self._detector: Detector | None = None
        self._threshold = 0.0
        if config.refresh not in ("every", "drift"):
            chosen: DetectorConfig = detector_config(config.refresh)
            self._detector = DETECTORS.make(chosen)
            stated = config.threshold if chosen.threshold is None else chosen.threshold
            self._threshold = chosen.scaler_threshold if stated is None else stated

    @property
    def needs_layers(self) -> bool:
        """Whether the detector does."""
        return self._detector is not None and self._detector.needs_layers

    @property
    def asks_by_state(self) -> bool:
        """See `Learner`: whether a detector asks."""
        return self._detector is not None

    def begin(self, layout: Layout, num_clients: int, seed: int) -> None:
        """See `Learner`."""
        if not self.memory.is_ready:
            self.memory.begin(self.kind.init(layout, num_clients))

    def init(self, layout: Layout | None) -> TeacherState:
        """No predecessor yet."""
        if self._detector is None:
            return TeacherState()
        return TeacherState(detector=self._detector.init(layout))

    def wants(self, step: int, states: Sequence[TeacherState]) -> bool:
        """See `Learner`."""
        progress, config = self.memory.progress, self.config
        if step < config.start_step:
            return False
        if progress.taught < config.train_steps:
            return True
        if config.refresh == "every":
            return step - progress.begun >= config.every
        if step - progress.looked < config.every:
            return False
        return config.refresh == "drift" or any(bool(state.asks) for state in states)

    def learn(self, found: ClientGradients, states: Sequence[TeacherState], ctx: Context) -> Metrics:
        """See `Learner`; nothing is learnt of a gradient that is not finite."""
        begin = time.perf_counter()
        lesson = self.kind.collect(found, ctx, self._change_of(found.mean, states, ctx))
        if lesson is None:
            return {}
        memory, progress = self.memory, self.memory.progress
        metrics = self.kind.test(lesson, memory.learnt, ctx)
        begins = progress.taught in (0, self.config.train_steps)
        if begins and progress.taught and self.config.refresh == "drift":
            error = math.nan
            if kind.ERROR in metrics:
                error = float(found.from_first(metrics[kind.ERROR].double().reshape(1)))
            if math.isnan(progress.reference):
                progress = replace(progress, reference=error)
            begins = self.kind.has_drifted(error, progress.reference)
            if not begins:
                memory.progress = replace(progress, looked=ctx.step)
                return metrics
        memory.learnt, told = self.kind.learn(lesson, memory.learnt, begins, found, ctx)
        if begins:
            progress = Progress(begun=ctx.step)
        memory.progress = replace(progress, taught=progress.taught + 1, looked=ctx.step)
        seconds = torch.full_like(found.mean.sq_norm, time.perf_counter() - begin)
        return metrics | told | {kind.SECONDS: seconds}

    def update(self, gradient: Gradient, state: TeacherState, ctx: Context) -> tuple[Gradient, TeacherState, Metrics]:
        """Apply the teacher, as it is, to the gradient of a step."""
        change, asks, detector = state.change, state.asks, state.detector
        if self._change is not None:
            change = self._change.observe(gradient.measured, change, ctx)
        if self._detector is not None:
            detector = self._detector.observe(gradient.measured, detector, ctx)
            fires = detector.change >= self._threshold
            # A training answers what was asked before.
            asks = fires if self.memory.progress.looked == ctx.step else fires | asks
        gradient, metrics = self.kind.apply(gradient, self.memory.learnt, ctx, change.change)
        return gradient, TeacherState(change, detector, asks), metrics

    def _change_of(self, mean: Gradient, states: Sequence[TeacherState], ctx: Context) -> Tensor:
        """Eq. 8's of a shared gradient that is to be learnt from."""
        if self._change is None or ctx.client >= 0:
            return unknown()
        return self._change.observe(mean, states[0].change, ctx).change


@TRANSFORMS.register("teacher", TeacherTransformConfig)
def make_teacher(config: TeacherTransformConfig) -> TeacherTransform:
    """See the module."""
    return TeacherTransform(config.teacher)
