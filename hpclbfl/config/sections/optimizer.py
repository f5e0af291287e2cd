"""Section of a job file: what all optimizers share."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import model_validator

from hpclbfl.config.sections.base import NonNegativeFloat, PositiveFloat, Section


class OptimizerConfig(Section):
    """The optimizer; in local training each client has its own."""

    name: str
    """Which optimizer."""
    lr: PositiveFloat = 0.1
    """Learning rate, before the schedule."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay."""
    decay: Literal["all", "weights"] = "all"
    """What weight decay applies to. weights: neither decay nor trust ratio for biases and the parameters of norms, the
    tensors of fewer than 2 dimensions."""

    adapts_layers: ClassVar[bool] = False
    """Whether each layer's step is made proportional to its norm (LARS, LAMB)."""
    keeps_scale: ClassVar[bool] = False
    """Whether a gradient times X moves the parameters X times as far; others divide by the gradient's size."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, values: Any) -> Any:
        """`decay: null` and `eps: null` are the optimizer's own, written out so that the hash tells what is run."""
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value is not None or key not in ("decay", "eps")}

    @property
    def has_momentum(self) -> bool:
        """Whether it keeps a moving average of the gradient, as large as the parameters."""
        return bool(getattr(self, "momentum", True))
