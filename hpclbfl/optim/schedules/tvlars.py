"""TVLARS: LARS without warm-up; the learning rate is multiplied by a falling sigmoid.

K. Do et al., "Revisiting LARS for Large Batch Training Generalization of Neural Networks", arXiv 2309.14053:

    phi(t) = 1 / (alpha + exp(lambda * (t - d))) + gamma_min

The paper counts t in steps and applies phi to the trust ratio, before momentum. Here t is in epochs, so that the curve
does not depend on the batch size, and phi multiplies the learning rate; the two differ only in the momentum of steps
with a higher phi. The authors' public code (KhoiDOO/tvlars) has no gamma_min and decays to 0.
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
    """gamma_min: the final value of the factor."""

    @model_validator(mode="after")
    def _no_warmup(self) -> TvlarsConfig:
        if self.warmup_epochs:
            raise ValueError("'warmup_epochs' cannot be used with kind tvlars, which replaces the warm-up")
        return self

    def check(self, job: Any) -> None:
        """See `ScheduleConfig`."""
        if job.optimizer.name != "lars":
            raise ConfigError(f"schedule.kind: tvlars needs optimizer.name: lars, not {job.optimizer.name}")


@SCHEDULES.register("tvlars", TvlarsConfig)
def make_tvlars(config: TvlarsConfig) -> Decay:
    """See the module."""
    return lambda epoch: factor(epoch, config.alpha, config.rate, config.delay_epochs, config.floor)


def factor(epoch: float, alpha: float, rate: float, delay_epochs: float, floor: float) -> float:
    """phi(t): about 1 / alpha + floor at first, 1 / (alpha + 1) + floor at the delay, finally floor.

    Args:
        epoch: t, samples so far / N.
        alpha: see `TvlarsConfig`.
        rate: lambda, per epoch.
        delay_epochs: d.
        floor: gamma_min.
    """
    exponent = rate * (epoch - delay_epochs)
    if exponent > 0:
        # Expanded by exp(-exponent), so that nothing overflows.
        shrunk = math.exp(-exponent)
        return shrunk / (alpha * shrunk + 1.0) + floor
    return 1.0 / (alpha + math.exp(exponent)) + floor
