"""The learning rate is multiplied by `gamma` at each milestone."""

from __future__ import annotations

import math

from pydantic import Field, model_validator

from hpclbfl.config.components import SCHEDULES
from hpclbfl.config.sections import ScheduleConfig
from hpclbfl.config.sections.base import PositiveFloat
from hpclbfl.optim.schedules import Decay

_MAX_ORDERS = 300
"""Orders of magnitude by which all milestones together may change the rate."""


class MultistepConfig(ScheduleConfig):
    """See the module."""

    milestones_epochs: tuple[PositiveFloat, ...] = Field(min_length=1)
    """Epochs, in ascending order."""
    gamma: PositiveFloat = 0.1
    """Factor."""

    @model_validator(mode="after")
    def _milestones_rise(self) -> MultistepConfig:
        if list(self.milestones_epochs) != sorted(set(self.milestones_epochs)):
            raise ValueError("'milestones_epochs' must be in ascending order")
        if len(self.milestones_epochs) * abs(math.log10(self.gamma)) > _MAX_ORDERS:
            raise ValueError("'gamma' to the power of the number of milestones is too large or too small for a float")
        return self


@SCHEDULES.register("multistep", MultistepConfig)
def make_multistep(config: MultistepConfig) -> Decay:
    """See the module."""
    return lambda epoch: config.gamma ** sum(epoch >= m for m in config.milestones_epochs)
