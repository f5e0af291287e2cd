from __future__ import annotations

import math

import pytest

from hpclbfl.optim.schedules.tvlars import factor


def test_factor_by_hand() -> None:
    # exp(ln 3 * (t - 2)) is 1/9, 1/3, 1, 3, 9 at t = 0 to 4.
    got = [factor(t, alpha=1.0, rate=math.log(3), delay_epochs=2.0, floor=0.0) for t in range(5)]
    assert got == pytest.approx([9 / 10, 3 / 4, 1 / 2, 1 / 4, 1 / 10])
    got = [factor(t, alpha=0.5, rate=math.log(3), delay_epochs=2.0, floor=0.01) for t in range(5)]
    assert got == pytest.approx([18 / 11 + 0.01, 6 / 5 + 0.01, 2 / 3 + 0.01, 2 / 7 + 0.01, 2 / 19 + 0.01])


def test_factor_ends_at_its_floor_without_overflow() -> None:
    assert factor(1e6, alpha=1.0, rate=1e6, delay_epochs=0.0, floor=0.02) == 0.02
    assert factor(1e6, alpha=1.0, rate=1e6, delay_epochs=0.0, floor=0.0) == 0.0
    assert factor(0.0, alpha=2.0, rate=1e6, delay_epochs=1e6, floor=0.0) == 0.5


def test_factor_is_continuous_at_the_delay() -> None:
    below, above = (factor(5 + e, alpha=0.1, rate=2.0, delay_epochs=5.0, floor=0.0) for e in (-1e-9, 1e-9))
    assert below == pytest.approx(above, rel=1e-8) and below > above
