"""A schedule of one's own: a saw, cosine decay that starts anew every period."""

from __future__ import annotations

import math

from hpclbfl.config.sections import ScheduleConfig
from hpclbfl.config.sections.base import PositiveFloat


class Saw:
    """I. Loshchilov, F. Hutter, "SGDR", ICLR 2017, with periods of one length.

    A pure function of the epoch (samples of all clients / size of the training set): a resumed run asks it again.
    """

    class Config(ScheduleConfig):
        """`warmup_epochs` and `scaling` are there already, and work with any schedule."""

        period_epochs: PositiveFloat = 1.0

    def __init__(self, config: Config) -> None:
        self.begin, self.period = config.warmup_epochs, config.period_epochs

    def __call__(self, epoch: float) -> float:
        """What the learning rate is multiplied with, from the end of the warm-up on."""
        return 0.5 * (1.0 + math.cos(math.pi * ((epoch - self.begin) / self.period % 1.0)))
