from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hpclbfl.gradients.noise_scale import NoiseScale, NoiseState, estimate
from hpclbfl.gradients.weight_noise import client_factors

SIZES = np.array([4, 8, 32, 84])


def of(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def gaussian_norms(rng: np.random.Generator, mean: np.ndarray, deviations: np.ndarray) -> tuple[float, float]:
    """A and |G|^2 of one step in which each sample's gradient is normal."""
    clients = np.stack([mean + deviations * rng.standard_normal(len(mean)) / math.sqrt(b) for b in SIZES])
    shares = SIZES / SIZES.sum()
    return float((shares * (clients**2).sum(1)).sum()), float(((shares[:, None] * clients).sum(0) ** 2).sum())


def test_estimates_are_unbiased_for_unequal_batches() -> None:
    rng = np.random.default_rng(1)
    mean, deviations = rng.standard_normal(5), rng.uniform(1, 4, 5)
    found = np.array(
        [
            [float(x) for x in estimate(of(local), of(total), len(SIZES), int(SIZES.sum()))]
            for local, total in (gaussian_norms(rng, mean, deviations) for _ in range(20_000))
        ]
    )
    errors = found.std(0) / math.sqrt(len(found))
    assert abs(found[:, 0].mean() - (deviations**2).sum()) < 4 * errors[0]
    assert abs(found[:, 1].mean() - (mean**2).sum()) < 4 * errors[1]
    # The test would not see an error of less than this much.
    assert errors[0] < 0.01 * (deviations**2).sum()


def test_estimate_by_hand() -> None:
    """Two clients of one sample each with gradients 3 and 1: G = 2, variance 2 (unbiased), |g|^2 = 4 - 2 / 2."""
    tr_sigma, truth = estimate(of(5.0), of(4.0), 2, 2)
    assert (tr_sigma.item(), truth.item()) == (2.0, 3.0)


def test_ratio_is_of_averages_and_outlives_a_broken_step() -> None:
    scale, state = NoiseScale(decay=0.5), NoiseState()
    first, state = scale.update(of(5.0), of(4.0), 2, 2, state)
    assert first.b_simple.item() == pytest.approx(2 / 3)
    broken, state = scale.update(of(math.inf), of(math.nan), 2, 2, state)
    assert math.isnan(broken.tr_sigma.item()) and broken.b_simple.item() == pytest.approx(2 / 3)
    second, state = scale.update(of(8.0), of(4.0), 2, 2, state)
    # tr(Sigma) 2 then 8, |g|^2 3 then 0, the older one at half weight.
    assert second.b_simple.item() == pytest.approx((0.5 * 2 + 8) / (0.5 * 3 + 0))


def test_noisy_weights_keep_the_mean_and_add_the_covariance_they_promise() -> None:
    std, shares = 0.7, SIZES / SIZES.sum()
    factors = np.array([client_factors(SIZES, std, 0, step) for step in range(20_000)])
    np.testing.assert_allclose((shares * factors).sum(1), 1.0, rtol=1e-12)
    # The reduced gradient's covariance over Sigma is sum (b_c / B)^2 f_c^2 / b_c.
    covariance = ((shares * factors) ** 2 / SIZES).sum(1)
    error = covariance.std() / math.sqrt(len(covariance))
    assert abs(covariance.mean() - (1 + std**2) / SIZES.sum()) < 4 * error
    assert error < 0.01 / SIZES.sum()


def test_noisy_weights_are_functions_of_seed_and_step_and_spare_clients_without_samples() -> None:
    sizes = np.array([4, 0, 4])
    factors = client_factors(sizes, 0.5, 3, 7)
    assert factors[1] == 1 and factors[0] + factors[2] == pytest.approx(2)
    np.testing.assert_array_equal(factors, client_factors(sizes, 0.5, 3, 7))
    assert (factors != client_factors(sizes, 0.5, 3, 8)).any() and (factors != client_factors(sizes, 0.5, 4, 7)).any()
