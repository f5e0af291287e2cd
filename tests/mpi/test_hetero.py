"""Unlike ranks under a real mpirun: batches follow speed, and the log tells who waited."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpclbfl.launch.mpirun import run_mpirun
from hpclbfl.runs.log.reader import read_run
from tests.conftest import make_job

pytestmark = [pytest.mark.mpi, pytest.mark.alone]

# Sleeping dwarfs what two busy cores do to the timers.
SLOW = {"emulate": {"slowdown": [2, 8]}, "clients": 2}
B = {"global_batch_size": 24}
JOBS: dict[str, dict[str, Any]] = {
    "fixed": {**SLOW, "batching": B, "stop": {"steps": 8}},
    "dynamic": {**SLOW, "batching": {**B, "policy": "dynamic", "window": 3}, "stop": {"steps": 24}},
    "warmup": {
        **SLOW,
        "batching": {**B, "policy": "proportional", "from": "warmup", "window": 3},
        "stop": {"steps": 24},
    },
    "fedavg": {
        **SLOW,
        "sync": {"kind": "fedavg", "local_steps": 4},
        "batching": {**B, "policy": "dynamic", "window": 3},
        "stop": {"steps": 24},
    },
    "local-steps": {
        **SLOW,
        "sync": {"kind": "fedavg", "local_steps": "proportional", "max_local_steps": 4},
        "batching": B,
        "stop": {"steps": 16},
    },
}


@pytest.fixture(scope="module", params=["horovod", "mpi"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, toy_set: Path) -> Path:
    base = tmp_path_factory.mktemp("hetero")
    todo = []
    for name, sections in JOBS.items():
        (base / f"{name}.yaml").write_text(
            make_job(toy_set, **{"evaluate": {"every_steps": 100}, **sections}).to_yaml()
        )
        todo.append([str(base / f"{name}.yaml"), str(base / name), "train"])
    (base / "list.json").write_text(json.dumps(todo))
    program = str(Path(__file__).with_name("jobs_program.py"))
    assert run_mpirun(2, [sys.executable, program, str(base / "list.json"), request.param]) == 0
    return base


def test_the_fast_rank_waits(runs: Path) -> None:
    steps = read_run(runs / "fixed").tables["steps"]
    np.testing.assert_allclose(steps["t_sync_s"], steps["t_wait_s"] + steps["t_transfer_s"], rtol=1e-9, atol=1e-12)
    fast, slow = (steps[steps["client"] == client] for client in (0, 1))
    # Transfers of a few kB are nothing beside the difference of the ranks' compute times.
    np.testing.assert_allclose(fast["t_transfer_s"], slow["t_transfer_s"], rtol=1e-4)
    assert (slow["t_wait_s"][1:] < fast["t_wait_s"][1:]).all()
    gap = slow["t_compute_s"] - fast["t_compute_s"]
    assert np.median(fast["t_wait_s"] / gap) == pytest.approx(1.0, abs=0.4)


@pytest.mark.parametrize("name", ["dynamic", "warmup", "fedavg"])
def test_batches_follow_speed(runs: Path, name: str) -> None:
    run = read_run(runs / name)
    steps, plans = run.tables["steps"], run.tables["plans"]
    sizes = steps["local_batch_size"].reshape(-1, 2)
    assert (sizes.sum(1) == 24).all()
    assert sizes[0].tolist() == [12, 12]
    assert sizes[-1][0] > 1.5 * sizes[-1][1]
    assert (steps["num_samples"].reshape(-1, 2)[:, 0] == 24 * np.arange(1, 25)).all()
    # Plans stand in the log from their first step on, the first one included; one made at the end, for a run that goes
    # on from there.
    trained = sorted(set(plans["step"]) - {len(sizes)})
    for step in trained:
        assert plans["local_batch_size"][plans["step"] == step].tolist() == sizes[step].tolist()
    assert set(trained) == {0, *(np.flatnonzero(np.diff(sizes[:, 0]) != 0) + 1)}


def test_slow_clients_take_fewer_local_steps(runs: Path) -> None:
    run = read_run(runs / "local-steps")
    sizes = run.tables["steps"]["local_batch_size"].reshape(-1, 4, 2)
    assert (sizes[0] == 12).all(), "speeds are not known in the first round"
    for later in sizes[1:]:
        assert (later[:, 0] == 12).all()
        assert 12 <= later[:, 1].sum() <= 24 and later[3, 1] == 12
    assert any(b"local steps by client: 4, " in text for text in run.tables["events"]["text"])
    evaluated = run.tables["evals"]["num_samples"][-1]
    assert evaluated == run.tables["steps"]["local_batch_size"].sum()
