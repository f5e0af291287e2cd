"""Half a period of a cosine, from 1 at the end of the warm-up to 0 at `total_epochs`.

I. Loshchilov, F. Hutter, "SGDR", ICLR 2017, without restarts.
"""

from __future__ import annotations

import math
from typing import Any

from hpclbfl.config.components import SCHEDULES
from hpclbfl.config.sections import ScheduleConfig
from hpclbfl.config.sections.base import PositiveFloat
from hpclbfl.core.errors import ConfigError
from hpclbfl.optim.schedules import Decay


class CosineConfig(ScheduleConfig):
    """See the module."""

    total_epochs: PositiveFloat | None = None
    """Where the rate reaches 0; null: the end of the run."""

    @property
    def ends_with_run(self) -> bool:
        """See `ScheduleConfig`."""
        return self.total_epochs is None

    def with_end(self, planned_epochs: float | None) -> CosineConfig:
        """See `ScheduleConfig`."""
        return self.model_copy(update={"total_epochs": planned_epochs}) if self.ends_with_run else self

    def check(self, job: Any) -> None:
        """See `ScheduleConfig`."""
        if self.total_epochs is None:
            raise ConfigError("schedule.total_epochs: a cosine needs an end: give it, or stop.epochs, steps or samples")
        if self.total_epochs <= self.warmup_epochs:
            raise ConfigError(f"schedule: the cosine ends at epoch {self.total_epochs:g}, within the warm-up")


@SCHEDULES.register("cosine", CosineConfig)
def make_cosine(config: CosineConfig) -> Decay:
    """See the module; `total_epochs` is set."""
    begin, end = config.warmup_epochs, config.total_epochs or math.inf
    return lambda epoch: 0.5 * (1.0 + math.cos(math.pi * min((epoch - begin) / (end - begin), 1.0)))
