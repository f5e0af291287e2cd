from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpclbfl.config.job import JobConfig
from hpclbfl.planner.runner import Outcome, Probe
from tests.conftest import make_job, write_toy_set


@pytest.fixture(autouse=True)
def diagnostics(terminal: None) -> None:
    """What is told goes to standard error here."""


@pytest.fixture(scope="session")
def larger_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1200 training samples of 16 x 16 px."""
    return write_toy_set(tmp_path_factory.mktemp("larger") / "larger.h5", num_train=1200, num_test=12, side=16)


def planned_job(path: Path, **sections: Any) -> JobConfig:
    values: dict[str, Any] = {"clients": None, "precision": "float32", "batching": {"local_batch_size": 16}}
    return make_job(path, **{**values, **sections})


def in_process(request: dict[str, Any], limit_bytes: int | None, plain_allocator: bool) -> Outcome:
    """A probe that stays here, through JSON all the same."""
    from hpclbfl.planner.probe import answer

    found = json.loads(json.dumps(answer(json.loads(json.dumps(request)))))
    return Outcome(None if found.get("out_of_memory") else found)


def with_peaks(probe: Probe, fixed: float, per_sample: float) -> Probe:
    """The probe, but peaks of memory are fixed + per_sample * batch, on a device that runs out of it."""

    def run(request: dict[str, Any], limit_bytes: int | None, plain_allocator: bool) -> Outcome:
        if request["kind"] != "peak":
            return probe(request, limit_bytes, plain_allocator)
        peak = fixed + per_sample * request["batch"]
        if limit_bytes is not None and peak > limit_bytes:
            return Outcome(None, int(peak))
        return Outcome({"peak_bytes": int(peak), "seconds": [0.1]}, int(peak))

    return run


def with_times(probe: Probe, fixed_s: float, per_sample_s: float) -> Probe:
    """The probe, but a step takes fixed_s + per_sample_s * batch, a tenth of it for loading."""

    def run(request: dict[str, Any], limit_bytes: int | None, plain_allocator: bool) -> Outcome:
        outcome = probe(request, limit_bytes, plain_allocator)
        if request["kind"] != "times" or outcome.answer is None:
            return outcome
        taken = [(b, r, fixed_s + per_sample_s * b) for b, r, _, _ in outcome.answer["rows"]]
        return Outcome({**outcome.answer, "rows": [(b, r, 0.1 * s, 0.9 * s) for b, r, s in taken]})

    return run


def replay(recorded: dict[str, Outcome]) -> Probe:
    """Asks in this process once, and gives the same answers ever after."""

    def run(request: dict[str, Any], limit_bytes: int | None, plain_allocator: bool) -> Outcome:
        if request["kind"] not in recorded:
            recorded[request["kind"]] = in_process(request, limit_bytes, plain_allocator)
        return recorded[request["kind"]]

    return run
