"""TVLARS: LARS without warm-up, its learning rate times a sigmoid that starts high and falls.

K. Do et al., "Revisiting LARS for Large Batch Training Generalization of Neural Networks", arXiv 2309.14053:

    phi(t) = 1 / (alpha + exp(lambda * (t - d))) + gamma_min

The paper counts t in steps and puts phi into the trust ratio, before momentum; here t is in epochs, so that a job
keeps its shape when the batch changes, and phi multiplies the learning rate of LARS, which is the same but for steps
whose momentum dates from a higher phi. The authors' public code (KhoiDOO/tvlars) has no gamma_min and decays to 0.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import model_validator

from hpclbfl.config.components import SCHEDULES
from hpclbfl.config.sections import ScheduleConfig
from hpclbfl.config.sections.base import NonNegativeFloat, PositiveFloat
from hpclbfl.core.errors import ConfigError
from hpclbfl.optim.schedules import Decay


class TvlarsConfig(ScheduleConfig):
    """See the module."""

    alpha: PositiveFloat = 1.0
    """alpha; the factor is at most 1 / alpha."""
    rate: PositiveFloat
    """lambda: how steeply the factor falls, per epoch."""
    delay_epochs: NonNegativeFloat
    """d: the epoch in the middle of the fall."""
    floor: NonNegativeFloat = 0.0
    """gamma_min: what the factor falls to."""

    @model_validator(mode="after")
    def _no_warmup(self) -> TvlarsConfig:
        if self.warmup_epochs:
            raise ValueError("'warmup_epochs' does not go with kind tvlars, which replaces the warm-up")
        return self

    def check(self, job: Any) -> None:
        """See `ScheduleConfig`."""
        if job.optimizer.name != "lars":
            raise ConfigError(f"schedule.kind: tvlars goes with optimizer.name: lars, not {job.optimizer.name}")


@SCHEDULES.register("tvlars", TvlarsConfig)
def make_tvlars(config: TvlarsConfig) -> Decay:
    """See the module."""
    return lambda epoch: factor(epoch, config.alpha, config.rate, config.delay_epochs, config.floor)


def factor(epoch: float, alpha: float, rate: float, delay_epochs: float, floor: float) -> float:
    """phi: from about 1 / alpha + floor, over 1 / (alpha + 1) + floor at the delay, to floor.

    Args:
        epoch: t, samples so far / N.
        alpha: bounds the factor's height.
        rate: lambda, per epoch.
        delay_epochs: d.
        floor: gamma_min, which the factor falls to.
    """
    exponent = rate * (epoch - delay_epochs)
    if exponent > 0:
        # The same fraction times exp(-exponent), which cannot overflow.
        shrunk = math.exp(-exponent)
        return shrunk / (alpha * shrunk + 1.0) + floor
    return 1.0 / (alpha + math.exp(exponent)) + floor
