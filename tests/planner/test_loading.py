"""Which batches are loaded for M_batch, on devices with more and less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpclbfl.planner.loading import fitted_sizes, load_order, loaded_sizes
from hpclbfl.planner.runner import Gathered, Outcome
from hpclbfl.planner.study import DeviceProfiler, Options, Place
from tests.planner.conftest import planned_job

GB = 10**9
IMAGE = 3 * 224 * 224


def test_the_sizes_of_fig_4b_as_far_as_memory_goes() -> None:
    assert loaded_sizes(IMAGE * 6, 1 * GB) == ([1, 32, 64, 128, 512, 1024], [])
    assert loaded_sizes(IMAGE * 6, 0.5 * GB) == ([1, 32, 64, 128, 512], [1024])
    assert loaded_sizes(IMAGE * 6, -1) == ([1, 32, 64, 128], [512, 1024])
    assert fitted_sizes([1, 32, 64, 128, 512, 1024]) == [32, 128, 1024]
    assert fitted_sizes([1, 32, 64, 128]) == [32, 128]


def test_large_ones_are_loaded_once() -> None:
    assert load_order([1, 128, 512], IMAGE, 2) == [(1, 0), (128, 0), (512, 0), (1, 1), (128, 1)]
    assert load_order([1, 512], 3 * 32 * 32, 2) == [(1, 0), (512, 0), (1, 1), (512, 1)]


def batch_memory(tmp_path: Path, limit: int, sizes: dict[int, int]) -> tuple[DeviceProfiler, dict[str, Any], list[str]]:
    """A study of 224 px images after loading; IMAGE * 6 bytes a sample unless `sizes` says otherwise."""
    asked: dict[str, Any] = {}
    said: list[str] = []

    def probe(request: dict[str, Any], limit_bytes: int | None, plain_allocator: bool) -> Outcome:
        asked.update(request)
        return Outcome({"rows": [(b, r, sizes.get(b, IMAGE * 6 * b)) for b, r in request["batches"]]})

    job = planned_job(tmp_path / "x.h5").resolved(1)
    study = DeviceProfiler(job, Place(), probe, Options(limit, repetitions=2), said.append)
    counts = dict.fromkeys(("threads", "num_train", "itemsize", "buffer_bytes"), 1)
    sizes_bytes = dict.fromkeys(("free_bytes", "missing_bytes", "start_bytes", "model", "gradient", "optimizer"), 0)
    lists: dict[str, Any] = {name: [] for name in ("rows", "fitted", "held_out", "activation", "shapes")}
    gathered = Gathered(
        device="CPU",
        fingerprint="",
        input_bytes=3 * 224 * 224,
        sample_text="224 px",
        in_memory=False,
        host_bytes=600 * 10**6,
        **counts,
        **sizes_bytes,
        **lists,
    )
    line = study._batch_memory(gathered, limit)
    assert line.per_sample == pytest.approx(IMAGE * 6)
    return study, asked, said[1:]


def test_a_batch_that_does_not_fit_is_left_out_with_a_message(tmp_path: Path) -> None:
    study, asked, said = batch_memory(tmp_path, 1 * GB, {})
    assert [b for b, r in asked["batches"] if r == 0] == [1, 32, 64, 128]
    assert said == [
        "a batch of 512 is not loaded: it takes 462 MB, and 368 MB are left",
        "a batch of 1024 is not loaded: it takes 925 MB, and 368 MB are left",
    ]
    assert {row.batch for row in study.rows} == {1, 32, 64, 128}


def test_all_of_them_with_memory_enough(tmp_path: Path) -> None:
    study, _, said = batch_memory(tmp_path, 2 * GB, {})
    assert said == []
    assert [row.batch for row in study.rows if row.role == "held_out" and row.repetition == 0] == [1, 64, 512]
    assert [row.batch for row in study.rows if row.repetition == 1] == [1, 32, 64, 128]


def test_memory_too_small_to_be_measured_is_said(tmp_path: Path) -> None:
    study, _, said = batch_memory(tmp_path, 2 * GB, {1: 0})
    assert said == ["the memory of a batch of 1 is too small to be measured"]
    assert 1 not in {row.batch for row in study.rows}
