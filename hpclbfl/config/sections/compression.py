"""Section `compression` of a job file: what clients send instead of whole gradients, or of changes of their models."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, SerializeAsAny, StrictBool, model_validator

from hpclbfl.config.part_names import brief
from hpclbfl.config.sections.base import Nested, Number, Section

Ratio = Annotated[Number, Field(gt=0.0, le=1.0)]
"""Share of the values that are sent."""


class CompressionConfig(Section):
    """What clients send instead of their gradients or, where they train alone, of what they have changed.

    Left out, or with `kind: none`, all of it. See `hpclbfl.comm.compression`.
    """

    kind: str
    """Which compressor."""

    @property
    def title(self) -> str:
        """What it is called, in a few words."""
        return brief(self.kind)

    @property
    def keeps_residual(self) -> bool:
        """Whether what is not sent is kept for the next time."""
        return False

    @property
    def is_linear(self) -> bool:
        """Whether it acts on the sum of a rank's clients."""
        return False

    @property
    def level(self) -> float:
        """How much is sent where no rule decides: a ratio, or a rank."""
        return 1.0

    @property
    def adapter(self) -> AdaptConfig | None:
        """What changes the level during training."""
        return None

    @model_validator(mode="after")
    def _rule_fits(self) -> CompressionConfig:
        rule = self.adapter
        if rule is not None and rule.strongest > self.level:
            raise ValueError(f"adapt.to: {rule.strongest:g} is above {self.level:g}, from which it is to go down")
        if rule is not None and rule.needs_error and self.is_linear:
            raise ValueError(
                f"adapt.by: {brief(rule.by)} needs what each client did not send, and {self.title} acts on sums of "
                "clients"
            )
        return self


class AdaptConfig(Section):
    """A rule by which the level of compression follows training; see `hpclbfl.comm.compression.adapt`."""

    by: str
    """Which rule."""

    needs_error: ClassVar[bool] = False
    """Whether it needs to know how much of the clients' gradients was not sent."""

    @property
    def strongest(self) -> float:
        """The lowest level that it goes to."""
        raise NotImplementedError


class FeedbackConfig(CompressionConfig):
    """A compressor with error feedback."""

    feedback: StrictBool = True
    """Add what one step did not send to the next one's gradient (error feedback)."""

    @property
    def keeps_residual(self) -> bool:
        """See `CompressionConfig`."""
        return self.feedback


Adapter = Annotated[SerializeAsAny[AdaptConfig], Nested("adapter")]


class SparseConfig(FeedbackConfig):
    """A compressor that sends a share of the values."""

    ratio: Ratio
    """Share of each parameter's values that are sent; at least one of each is."""
    adapt: Adapter | None = None
    """Rule by which the ratio changes: from `ratio` down to what the rule names, and back."""

    @property
    def level(self) -> float:
        """The ratio."""
        return self.ratio

    @property
    def adapter(self) -> AdaptConfig | None:
        """See `CompressionConfig`."""
        return self.adapt
