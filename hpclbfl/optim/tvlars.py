"""The learning rate's factor of TVLARS, a sigmoid that starts high and falls: LARS without warm-up.

K. Do et al., "Revisiting LARS for Large Batch Training Generalization of Neural Networks", arXiv 2309.14053:

    phi(t) = 1 / (alpha + exp(lambda * (t - d))) + gamma_min

The paper counts t in steps and puts phi into the trust ratio, before momentum; here t is in epochs, so that a job
keeps its shape when the batch changes, and phi multiplies the learning rate of LARS, which is the same but for steps
whose momentum dates from a higher phi. The authors' public code (KhoiDOO/tvlars) has no gamma_min and decays to 0.
"""

from __future__ import annotations

import math


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
