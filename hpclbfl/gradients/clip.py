"""Clipping the gradient's norm.

R. Pascanu et al., "On the difficulty of training recurrent neural networks", ICML 2013. Taken from the norm that was
measured for Eq. 8 anyway: clipping a gradient before it is measured would hold the norm constant whenever the clip
binds, and the change at 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from hpclbfl.config.components import TRANSFORMS
from hpclbfl.config.sections import GradientsConfig, TransformConfig
from hpclbfl.config.sections.base import PositiveFloat
from hpclbfl.gradients import Context, Metrics

if TYPE_CHECKING:
    import torch

    from hpclbfl.gradients.gradient import Gradient, Layout
else:
    from hpclbfl.core.lazy import lazy

    torch = lazy("torch")


class ClipConfig(TransformConfig):
    """The gradient's norm is cut down to `max_norm`."""

    name: Literal["clip"] = Field("clip", exclude=True)
    max_norm: PositiveFloat
    """Largest norm that passes as it is."""

    place: ClassVar[int] = 1

    @classmethod
    def of_section(cls, gradients: GradientsConfig) -> TransformConfig | None:
        """See `TransformConfig`; the key is `clip_norm`."""
        return None if gradients.clip_norm is None else cls(name="clip", max_norm=gradients.clip_norm)


@dataclass(frozen=True)
class Clip:
    """Multiplies by min(1, max_norm / |G|); a `hpclbfl.gradients.GradientTransform` without state."""

    max_norm: float

    needs_layers = False
    is_identity = False

    def init(self, layout: Layout | None = None) -> None:
        """Nothing to remember."""

    def update(self, gradient: Gradient, state: None, ctx: Context) -> tuple[Gradient, None, Metrics]:
        """The factor is NaN for a gradient that is NaN."""
        norm = gradient.sq_norm.double().sqrt()
        return gradient.scaled(torch.where(norm > self.max_norm, self.max_norm / norm, norm * 0 + 1)), None, {}


@TRANSFORMS.register("clip", ClipConfig)
def make_clip(config: ClipConfig) -> Clip:
    """See the module."""
    return Clip(config.max_norm)
