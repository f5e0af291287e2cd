"""A constant learning rate."""

from __future__ import annotations

from hpclbfl.config.components import SCHEDULES
from hpclbfl.config.sections import ScheduleConfig
from hpclbfl.optim.schedules import Decay


@SCHEDULES.register("constant", ScheduleConfig)
def make_constant(config: ScheduleConfig) -> Decay:
    """See the module."""
    return lambda epoch: 1.0
