"""Lines fitted to synthetic measurements with known parameters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import nnls

from hpclbfl.batching.cost_model import (
    ENDLESS,
    BentLine,
    Line,
    errors,
    fit_bent_line,
    fit_line,
    medians,
    plain_line,
    standard_error,
)
from hpclbfl.planner.compute import TimeRow, batch_ladder, best_batch, fit_times

LADDER = [4, 8, 16, 32, 64, 128, 256]


def test_a_line_is_found_exactly() -> None:
    line = fit_line({batch: 0.05 + 0.003 * batch for batch in LADDER})
    assert line.fixed == pytest.approx(0.05)
    assert line.per_sample == pytest.approx(0.003)
    assert line(1000) == pytest.approx(3.05)
    assert line.batch_of(3.05 + 1e-9) == 1000


def test_a_plain_line_is_ordinary_least_squares() -> None:
    line = plain_line({1: 1.0, 2: 2.0, 3: 4.0})
    assert line.per_sample == pytest.approx(1.5)
    assert line.fixed == pytest.approx(-2 / 3)


def test_small_batches_count_like_large_ones() -> None:
    # 1 % too much at every second size; absolute errors would let 256 alone decide.
    points = {batch: (0.05 + 0.003 * batch) * (1.01 if batch in (8, 32, 128) else 1.0) for batch in LADDER}
    assert max(errors(fit_line(points), points)) < 0.01


POINTS = st.dictionaries(st.sampled_from([1, 2, 3, *LADDER, 8192]), st.floats(1e-6, 1e3), min_size=2)


@given(POINTS)
def test_no_part_of_a_line_is_negative_and_none_fits_better(points: dict[int, float]) -> None:
    line = fit_line(points)
    assert line.fixed >= 0 and line.per_sample >= 0
    values = np.array(list(points.values()))
    design = np.stack([1 / values, np.array(list(points)) / values], axis=1)
    # Columns of one length, for the solver's tolerances are absolute.
    scale = np.linalg.norm(design, axis=0)
    _, best = nnls(design / scale, np.ones(len(values)))
    assert np.linalg.norm(design @ [line.fixed, line.per_sample] - 1) <= best * (1 + 1e-6) + 1e-9


@given(POINTS)
def test_where_least_squares_is_not_negative_it_is_taken(points: dict[int, float]) -> None:
    values = np.array(list(points.values()))
    design = np.stack([1 / values, np.array(list(points)) / values], axis=1)
    free = np.linalg.lstsq(design, np.ones(len(values)), rcond=None)[0]
    assume((free > 0).all())
    predicted = [fit_line(points)(batch) for batch in points]
    np.testing.assert_allclose(predicted, design @ free * values, rtol=1e-9)


@given(st.floats(1e-3, 10), st.floats(1e-6, 1), st.lists(st.sampled_from(LADDER), min_size=2, unique=True))
def test_an_exact_line_is_found_exactly(fixed: float, per_sample: float, batches: list[int]) -> None:
    line = fit_line({batch: fixed + per_sample * batch for batch in batches})
    assert line.fixed == pytest.approx(fixed, rel=1e-6)
    assert line.per_sample == pytest.approx(per_sample, rel=1e-6)


def test_what_grows_faster_than_the_batch_has_no_negative_time() -> None:
    # A free line through the three has -1.70 s at batch 0, and would predict a step of no time for a batch of 50.
    points = {100: 1.7, 200: 5.1, 300: 8.5}
    assert plain_line(points).fixed == pytest.approx(-1.70)
    line = fit_line(points)
    # By hand: shares of the batch a = 100 / 1.7, b = 200 / 5.1, c = 300 / 8.5, and (a + b + c) / (a^2 + b^2 + c^2).
    assert (line.fixed, line.per_sample) == (0.0, pytest.approx(0.0213546798))
    bent = fit_bent_line(points)
    # 200 and 300 do not lie on a line that starts at 0 or above; what was measured is kept, and 300 goes on.
    assert (bent.straight_from, bent.line.fixed) == (300, 0.0)
    assert [bent(batch) for batch in (100, 200, 250, 300, 600)] == pytest.approx([1.7, 5.1, 6.8, 8.5, 17.0])


def test_what_falls_is_flat_from_its_last_measurement_on() -> None:
    bent = fit_bent_line({10: 3.0, 20: 2.0})
    assert [bent(batch) for batch in (10, 15, 20, 400)] == pytest.approx([3.0, 2.5, 2.0, 2.0])


def test_one_batch_alone_is_proportional() -> None:
    assert fit_line({32: 8.0}) == Line(0.0, 0.25)


def test_no_batch_is_negative() -> None:
    assert Line(5.0, 1.0).batch_of(2.0) == 0


@given(st.floats(0, 1), st.floats(-1, 1), st.lists(st.sampled_from(LADDER), min_size=2, unique=True))
def test_predictions_never_fall_and_are_never_negative(fixed: float, per_sample: float, batches: list[int]) -> None:
    points = {batch: fixed + abs(per_sample) + 0.1 + per_sample * batch / 256 for batch in batches}
    line = fit_line(points)
    assert line.per_sample >= 0
    bent = fit_bent_line({batch: value**3 for batch, value in points.items()})
    assert all(bent(batch) >= 0 for batch in range(1, 300))


def test_the_knee_of_an_idle_device_is_found() -> None:
    # Flat up to 32, then a line, as on a device that small batches leave idle.
    points = {batch: max(0.010, 0.002 + 0.00025 * batch) for batch in LADDER}
    bent = fit_bent_line(points)
    assert bent.straight_from == 32
    assert bent.line.fixed == pytest.approx(0.002)
    assert bent.line.per_sample == pytest.approx(0.00025)
    assert bent(4) == pytest.approx(0.010)
    assert bent(12) == pytest.approx(0.010)
    assert bent(48) == pytest.approx(0.002 + 0.00025 * 48)
    assert bent(2) == pytest.approx(0.010)


def test_noise_is_not_taken_for_a_knee() -> None:
    rng = np.random.default_rng(3)
    rows = [(batch, (0.05 + 0.003 * batch) * rng.lognormal(0, 0.05)) for batch in LADDER for _ in range(9)]
    bent = fit_bent_line(medians(rows), standard_error(rows))
    assert bent.straight_from == 4
    assert bent.line.per_sample == pytest.approx(0.003, rel=0.05)


def test_below_the_smallest_measurement_nothing_is_negative() -> None:
    bent = BentLine(Line(0.0, 1.0), 16, ((4, 1.0), (8, 7.0)))
    assert bent(1) == 0.0
    assert bent(6) == pytest.approx(4.0)
    assert bent(12) == pytest.approx(11.5)


def test_standard_error_of_medians() -> None:
    assert standard_error([(8, 1.0), (16, 2.0)]) == 0.0
    rng = np.random.default_rng(0)
    rows = [(batch, 5.0 * (1 + 0.1 * rng.standard_normal())) for batch in range(40) for _ in range(25)]
    assert standard_error(rows) == pytest.approx(1.2533 * 0.1 / 5, rel=0.2)


def test_ladder() -> None:
    assert batch_ladder(256) == ([8, 16, 32, 64, 128, 256], [12, 24, 48, 96, 192])
    assert batch_ladder(16) == ([2, 4, 8, 16], [3, 6, 12])
    assert batch_ladder(8192)[0][0] == 8


def _rows(seconds: dict[int, float]) -> list[TimeRow]:
    return [TimeRow(batch, k, 0.1 * s, 0.9 * s) for batch, s in seconds.items() for k in range(3)]


def test_the_best_batch_is_the_smallest_of_the_fastest() -> None:
    # A flat device: twice the batch is half an epoch, until it is busy at 64; from there nothing is gained.
    flat = {batch: 0.01 if batch <= 64 else 0.01 * batch / 64 for batch in LADDER}
    assert best_batch(fit_times(_rows(flat), LADDER), 50_000, 1000) == 64
    # Large batches that fall out of the cache take longer per sample (Fig. 2 of the paper, ResNet50 at 1024).
    worse = {**{batch: 0.01 + 0.001 * batch for batch in LADDER[:-1]}, 256: 0.36}
    assert best_batch(fit_times(_rows(worse), LADDER), 50_000, 1000) == 128
    line = {batch: 0.05 + 0.003 * batch for batch in LADDER}
    assert best_batch(fit_times(_rows(line), LADDER), 50_000, 1000) == 256
    assert best_batch(fit_times(_rows(line), LADDER), 50_000, 100) == 64
    assert best_batch(fit_times(_rows(line), LADDER), 50_000, 3) == 3


def test_epochs_and_parts() -> None:
    fit = fit_times(_rows({batch: 0.05 + 0.003 * batch for batch in LADDER}), LADDER)
    assert fit.t_mov(64) == pytest.approx(0.1 * fit.step(64))
    assert fit.t_c(64) == pytest.approx(0.9 * fit.step(64))
    assert fit.epoch_s(100, 5000) == pytest.approx(50 * 0.35)


def test_a_line_that_does_not_rise_has_no_largest_batch() -> None:
    # Under noise, larger batches may seem no slower.
    flat = fit_line({10: 3.0, 20: 2.0})
    assert flat.per_sample == 0.0
    assert flat.batch_of(5.0) == ENDLESS and flat.batch_of(1.0) == 0
