from __future__ import annotations

import math
from typing import Any

import pytest

from hpclbfl.config.job import ConfigError, parse_job
from hpclbfl.optim.schedule import Schedule, make_schedule


def schedule(stop: dict[str, Any] | None = None, optimizer: str = "sgd", **keys: Any) -> Schedule:
    job = {
        "data": {"name": "digits"},
        "model": {"name": "resnet8"},
        "optimizer": {"name": optimizer, "lr": 0.1},
        "schedule": keys,
        "stop": stop or {"epochs": 10},
    }
    return make_schedule(parse_job(job, "job"), global_batch_size=64, num_train=640)


def test_constant() -> None:
    assert schedule(kind="constant").lr(0.0) == 0.1
    assert schedule(kind="constant").lr(1e6) == 0.1


def test_multistep_falls_at_its_milestones() -> None:
    made = schedule(kind="multistep", milestones_epochs=[2, 4], gamma=0.5)
    assert [made.lr(e) for e in (0, 1.99, 2, 3.99, 4, 9)] == [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]


def test_cosine_goes_from_peak_to_zero_over_the_run() -> None:
    made = schedule(kind="cosine")
    assert made.lr(0) == 0.1
    assert made.lr(5) == pytest.approx(0.05)
    assert made.lr(2.5) == pytest.approx(0.05 * (1 + math.sqrt(0.5)))
    assert made.lr(10) == pytest.approx(0.0)
    # 30 steps of 64 of 640 samples are 3 epochs.
    assert schedule({"steps": 30}, kind="cosine").lr(1.5) == pytest.approx(0.05)
    assert schedule({"samples": 1280, "epochs": 10}, kind="cosine").lr(1) == pytest.approx(0.05)


def test_linear_scaling_warms_up_from_the_base_rate() -> None:
    # Goyal et al.: B = 4 B_ref gives 4 lr, reached in equal steps from lr.
    made = schedule(scaling="linear", reference_batch_size=16, warmup_epochs=4)
    assert [made.lr(e) for e in (0, 1, 2, 3, 4, 5)] == pytest.approx([0.1, 0.175, 0.25, 0.325, 0.4, 0.4])
    # A batch below the reference one comes down instead.
    made = schedule(scaling="linear", reference_batch_size=128, warmup_epochs=4)
    assert [made.lr(e) for e in (0, 2, 4)] == pytest.approx([0.1, 0.075, 0.05])


def test_square_root_scaling_warms_up_from_the_base_rate() -> None:
    # B = 4 B_ref gives 2 lr, reached in equal steps from lr.
    made = schedule(scaling="sqrt", reference_batch_size=16, warmup_epochs=4)
    assert [made.lr(e) for e in (0, 1, 2, 3, 4, 5)] == pytest.approx([0.1, 0.125, 0.15, 0.175, 0.2, 0.2])
    made = schedule(scaling="sqrt", reference_batch_size=256)
    assert made.lr(0) == pytest.approx(0.05)


def test_warmup_without_scaling_rises_from_zero_and_cosine_follows() -> None:
    # 10 steps per epoch: the first of 20 warm-up steps runs at a twentieth of the rate, the last one at all of it.
    made = schedule(kind="cosine", warmup_epochs=2)
    assert [made.lr(e) for e in (0, 0.1, 1, 1.9, 2, 6)] == pytest.approx([0.005, 0.01, 0.055, 0.1, 0.1, 0.05])


def test_cosine_needs_an_end() -> None:
    with pytest.raises(ConfigError, match=r"schedule.total_epochs: a cosine needs an end"):
        schedule({"seconds": 10}, kind="cosine")
    with pytest.raises(ConfigError, match="within the warm-up"):
        schedule(kind="cosine", warmup_epochs=10)


def test_tvlars_falls_from_its_first_step() -> None:
    # exp(ln 3 * (t - 2)) is 1/9, 1, 9, 81 at t = 0, 2, 4, 6; B = 4 B_ref doubles the rate.
    keys = {"kind": "tvlars", "rate": math.log(3), "delay_epochs": 2, "scaling": "sqrt", "reference_batch_size": 16}
    made = schedule(optimizer="lars", **keys)
    assert [made.lr(e) for e in (0, 2, 4, 6)] == pytest.approx([0.18, 0.1, 0.02, 0.2 / 82])
    made = schedule(optimizer="lars", alpha=3.0, floor=0.5, **keys)
    assert [made.lr(e) for e in (0, 2, 4)] == pytest.approx([0.2 * (9 / 28 + 0.5), 0.15, 0.2 * (1 / 12 + 0.5)])


def test_tvlars_goes_with_lars() -> None:
    with pytest.raises(ConfigError, match=r"schedule.kind: tvlars needs optimizer.name: lars, not lamb"):
        schedule(optimizer="lamb", kind="tvlars", rate=1.0, delay_epochs=2)
