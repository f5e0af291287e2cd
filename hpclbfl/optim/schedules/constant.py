"""The same rate all along."""

from __future__ import annotations

from hpclbfl.config.components import SCHEDULES
from hpclbfl.config.sections import ScheduleConfig
from hpclbfl.optim.schedules import Decay


@SCHEDULES.register("constant", ScheduleConfig)
def make_constant(config: ScheduleConfig) -> Decay:
    """1."""
    return lambda epoch: 1.0
