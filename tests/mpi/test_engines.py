"""The same jobs through every engine under a real mpirun: equal losses, and equal decisions on all ranks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpclbfl.launch.mpirun import run_mpirun
from hpclbfl.runs.log.reader import read_file, read_run
from hpclbfl.training.session import run_job
from tests.conftest import make_job

pytestmark = pytest.mark.mpi

UNEQUAL = {"batching": {"local_batch_size": [2, 7, 3, 12]}}
SCALER = {"factor": 2.0, "threshold": 0.2}
RESIDUAL = {"kind": "residual", "small_batch": 3}
JOBS: dict[str, dict[str, Any]] = {
    "scaled": {**UNEQUAL, "gradients": {"scaler": SCALER, "noise_scale": {}, "clip_norm": 2.0}},
    # SelSync's change is known after 25 steps.
    "selsync-metric": {
        **UNEQUAL,
        "gradients": {"scaler": {**SCALER, "threshold": 0.0185, "change": "selsync"}},
        "stop": {"steps": 34},
    },
    "noisy": {**UNEQUAL, "gradients": {"weight_noise": 0.5, "extrapolation_lr": 0.1}},
    "fedavg": {"sync": {"kind": "fedavg", "local_steps": 4, "optimizer_state": "average"}},
    "selsync": {"sync": {"kind": "selsync", "threshold": 0.025}, "stop": {"steps": 34}},
    "post-local": {"sync": {"kind": "post_local", "switch_step": 4, "local_steps": 3}, "gradients": {"scaler": SCALER}},
    "sparse": {
        **UNEQUAL,
        "compression": {
            "kind": "topk",
            "ratio": 0.1,
            "adapt": {"by": "gain", "to": 0.01, "threshold": 0.2, "window": 3},
        },
    },
    "low-rank": {
        "compression": {"kind": "powersgd", "rank": 2},
        "sync": {"kind": "fedavg", "local_steps": 3},
        "gradients": {"scaler": SCALER},
    },
    # Buckets of a parameter each, some of which have fewer values than there are ranks.
    "quantised": {
        **UNEQUAL,
        "compression": {"kind": "qsgd", "bits": 4},
        "comm": {"bucket_mb": 1e-4},
        "stop": {"steps": 3},
    },
    "half": {
        "compression": {"kind": "fp16"},
        "comm": {"bucket_mb": 1e-4},
        "sync": {"kind": "post_local", "switch_step": 2, "local_steps": 2},
        "stop": {"steps": 4},
    },
    "taught": {**UNEQUAL, "gradients": {"teacher": {**RESIDUAL, "every": 4}, "clip_norm": 2.0}},
    "taught-fedavg": {
        "sync": {"kind": "fedavg", "local_steps": 2},
        "gradients": {"teacher": {**RESIDUAL, "refresh": "squared_norm", "threshold": 0.8, "every": 2}},
    },
    "taught-directions": {
        **UNEQUAL,
        "gradients": {"teacher": {"kind": "subspace", "factor": 2.0, "rank": 3, "refresh": "drift", "every": 2}},
    },
    "taught-mse": {"gradients": {"teacher": {"kind": "mse", "small_batch": 3, "train_steps": 1}}},
    "sample-noise": {**UNEQUAL, "gradients": {"sample_noise": 0.5}},
    "lars": {"optimizer": {"name": "lars", "lr": 1.0, "momentum": 0.9, "weight_decay": 5e-4}},
}
ENGINES = [("mpi", 2), ("mpi", 4), ("horovod", 2)]
MEASURED = ("loss", "lr", "local_grad_sq_norm", "grad_sq_norm", "grad_change", "scale", "tr_sigma", "b_simple")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, toy_set: Path) -> Path:
    """Folder of finished runs: <engine><ranks>/<job>, and alone/<job> in one process."""
    base = tmp_path_factory.mktemp("engines")
    for name, sections in JOBS.items():
        job = make_job(toy_set, **{"stop": {"steps": 10}, **sections})
        (base / f"{name}.yaml").write_text(job.to_yaml())
        run_job(job, base / "alone" / name)
    program = str(Path(__file__).with_name("jobs_program.py"))
    for engine, size in ENGINES:
        folder = base / f"{engine}{size}"
        todo = [[str(base / f"{name}.yaml"), str(folder / name), "train"] for name in JOBS]
        (base / f"{folder.name}.json").write_text(json.dumps(todo))
        assert run_mpirun(size, [sys.executable, program, str(base / f"{folder.name}.json"), engine]) == 0
    return base


def rows(folder: Path) -> np.ndarray:
    return np.sort(read_run(folder).tables["steps"], order=["step", "client"])


@pytest.mark.parametrize(("engine", "size"), ENGINES)
@pytest.mark.parametrize("name", list(JOBS))
def test_engines_agree(runs: Path, name: str, engine: str, size: int) -> None:
    alone, many = rows(runs / "alone" / name), rows(runs / f"{engine}{size}" / name)
    assert len(alone) == 4 * JOBS[name].get("stop", {"steps": 10})["steps"]
    for column in MEASURED:
        np.testing.assert_allclose(many[column], alone[column], rtol=1e-6, atol=1e-9, err_msg=column)
    assert many["scale"].tobytes() == alone["scale"].tobytes()
    assert read_run(runs / f"{engine}{size}" / name).provenance["engine"] == engine


@pytest.mark.parametrize(("engine", "size"), ENGINES)
def test_decisions_are_the_same_on_all_ranks(runs: Path, engine: str, size: int) -> None:
    for name in ("scaled", "selsync-metric"):
        folder = runs / f"{engine}{size}" / name / "attempts" / "000"
        per_rank = []
        for rank in range(size):
            steps = read_file(folder / f"rank{rank:05d}.h5").tables["steps"]
            first = steps[steps["client"] == steps["client"].min()]
            per_rank.append([first[column].tobytes() for column in ("grad_sq_norm", "grad_change", "scale")])
        assert all(found == per_rank[0] for found in per_rank)
        assert set(rows(runs / "alone" / name)["scale"]) == {1.0, 2.0}, "both decisions must occur"
    alone, many = (rows(runs / which / "selsync")["round"] for which in ("alone", f"{engine}{size}"))
    assert many.tolist() == alone.tolist()
    assert 25 < many.max() < 33, "averaged, after the window has filled, in some steps"


@pytest.mark.parametrize(("engine", "size"), ENGINES)
@pytest.mark.parametrize("name", [name for name in JOBS if name.startswith("taught")])
def test_a_teacher_is_one_on_all_ranks_and_that_of_a_single_rank(runs: Path, name: str, engine: str, size: int) -> None:
    folder = runs / f"{engine}{size}" / name
    assert len({(folder / f"alike{rank}.txt").read_text() for rank in range(size)}) == 1
    found = []
    for which in (runs / "alone" / name, folder):
        table = np.sort(read_run(which).tables["metrics"], order=["step", "client", "name"])
        found.append(table[table["name"] != b"teacher seconds"])
    alone, many = found
    assert alone[["step", "client", "name"]].tolist() == many[["step", "client", "name"]].tolist()
    np.testing.assert_allclose(many["value"], alone["value"], rtol=1e-5, atol=1e-8)
    assert len(set(alone["step"][alone["name"] == b"teacher noise"])) == 10


@pytest.mark.parametrize(("engine", "size"), ENGINES)
@pytest.mark.parametrize("name", list(JOBS))
def test_the_saved_model_counts_the_steps_on_any_number_of_ranks(runs: Path, name: str, engine: str, size: int) -> None:
    steps = JOBS[name].get("stop", {"steps": 10})["steps"]
    state = torch.load(runs / f"{engine}{size}" / name / "model.pt")
    counts = {key: int(value) for key, value in state.items() if key.endswith("num_batches_tracked")}
    assert counts and set(counts.values()) == {steps}


def test_mpi_alone_does_not_load_horovod(runs: Path) -> None:
    provenance = read_run(runs / "mpi2" / "scaled").provenance
    assert provenance["mpi_library"].startswith("mpi4py") and "Horovod" not in provenance["mpi_library"]
