"""Noise in the clients' weights: the noise of a smaller batch, without communication.

The reduced gradient is sum a_c g_c with a_c = (b_c / B) (1 + s xi_c), where the xi are drawn alike on every rank,
normal, and such that sum b_c xi_c = 0 and the mean of (b_c / B) xi_c^2 is 1. Its expectation stays G, its covariance
becomes (1 + s^2) Sigma / B: that of a batch of B / (1 + s^2). After Y. Wen et al., "An Empirical Study of Large-Batch
Stochastic Gradient Descent with Structured Covariance Noise", AISTATS 2020, who add noise of a covariance that they
must first estimate.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_NOISE_STREAM = 5


def client_factors(batch_sizes: NDArray[np.int64], std: float, seed: int, step: int) -> NDArray[np.float64]:
    """[C] 1 + s xi_c; 1 for clients without samples.

    Args:
        batch_sizes: [C] b_c, samples; at least two above 0.
        std: s, dimensionless.
    """
    shares = batch_sizes / batch_sizes.sum()
    key = np.random.SeedSequence(seed, spawn_key=(_NOISE_STREAM, step))
    draws = np.random.Generator(np.random.Philox(key)).standard_normal(len(batch_sizes))
    centred = draws - (shares * draws).sum()
    # Centring takes away this part of the variance.
    noise = centred / np.sqrt(1.0 - (shares**2).sum())
    return np.asarray(np.where(batch_sizes > 0, 1.0 + std * noise, 1.0), dtype=np.float64)
