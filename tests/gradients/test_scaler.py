from __future__ import annotations

import math

import pytest
import torch

from hpclbfl.gradients import Context
from hpclbfl.gradients.gradient import Gradient
from hpclbfl.gradients.scaler import StepUpScale, When


def of_squared_norm(value: float) -> Gradient:
    return Gradient(torch.ones(1), sq_norm=torch.tensor(value, dtype=torch.float64))


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        # Squared norms 4, 6, 6, 12, 2: changes -, 0.5, 0, 1, 0.833.
        ("delta_ge", [1, 3, 1, 3, 3]),
        ("delta_lt", [1, 1, 3, 1, 1]),
        ("always", [3, 3, 3, 3, 3]),
        ("never", [1, 1, 1, 1, 1]),
    ],
)
def test_gate(when: When, expected: list[int]) -> None:
    scaler = StepUpScale(factor=3.0, threshold=0.5, when=when)
    state, factors = scaler.init(), []
    for step, value in enumerate((4.0, 6.0, 6.0, 12.0, 2.0)):
        gradient, state, _ = scaler.update(of_squared_norm(value), state, Context(0, step, -1))
        factors.append(float(gradient.factor))
    assert factors == expected


def test_random_gate_has_its_duty_and_is_a_function_of_seed_step_and_client() -> None:
    scaler = StepUpScale(factor=2.0, when="random", duty=0.3)

    def draws(seed: int, client: int) -> list[float]:
        gradient, state = of_squared_norm(1.0), scaler.init()
        found = [scaler.update(gradient, state, Context(seed, s, client))[2]["scale"] for s in range(2000)]
        return [scale.item() for scale in found]

    first = draws(0, -1)
    assert first == draws(0, -1)
    assert first != draws(1, -1) and first != draws(0, 0)
    # Three standard deviations of the binomial.
    assert abs(first.count(2.0) / 2000 - 0.3) < 3 * math.sqrt(0.3 * 0.7 / 2000)
