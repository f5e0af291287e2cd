"""Noise in the samples' weights: the noise of a smaller batch from one client's batch alone, without memory.

The loss of a batch is sum (1 + s xi_i) l_i with xi_i normal, such that sum xi_i = 0 and the mean of xi_i^2 is 1. The
gradient's expectation stays that of the batch, its covariance becomes (1 + s^2) Sigma / b: that of a batch of
b / (1 + s^2). As `weight_noise` for clients; here also for one client, and while clients train alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_NOISE_STREAM = 13


def sample_factors(count: int, std: float, seed: int, step: int, client: int) -> NDArray[np.float64]:
    """[b] 1 + s xi_i; 1 of a single sample, which has no other to be weighed against.

    Args:
        count: b, samples.
        std: s, dimensionless.
    """
    if count < 2:
        return np.ones(count)
    key = np.random.SeedSequence(seed, spawn_key=(_NOISE_STREAM, step, client))
    draws = np.random.Generator(np.random.Philox(key)).standard_normal(count)
    # Centring takes away a part of the variance.
    noise = (draws - draws.mean()) / np.sqrt(1.0 - 1.0 / count)
    return np.asarray(1.0 + std * noise, dtype=np.float64)
