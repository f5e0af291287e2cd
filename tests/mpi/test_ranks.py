"""The same job on 1, 2 and 4 ranks, under a real mpirun: design invariants 1, 2, 3 and 8."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hpclbfl.config.job import JobConfig
from hpclbfl.launch.mpirun import run_mpirun
from hpclbfl.runs.log.reader import RunLogs, read_run
from tests.conftest import make_job

pytestmark = pytest.mark.mpi

FEDAVG = {"kind": "fedavg", "local_steps": 5}
PLAIN_SGD = {"lr": 0.05}
VIT = {"name": "vit_cifar"}
DROPOUT = {"name": "vit_cifar", "dropout": 0.2}
SPARSE = {"kind": "dirichlet", "alpha": 0.05}
FEW = {"stop": {"steps": 6}, "evaluate": {"every_steps": 6}}
ONE_LABEL = {"kind": "labels_per_client", "labels": 1}
ANEW = {"kind": "iid", "reshuffle": True}
"""All clients' batches of a step together are one batch of the whole set."""
ACCORDION = {"name": "accordion", "interval_epochs": 1}
PHASES = {"policy": "critical_phase", "factor": 2, "local_batch_size": 4, "change": ACCORDION, "threshold": 0.6}
WATCHED = ["squared_norm", "log_ratio", ACCORDION, "selsync", {"name": "noise_scale", "lag": 2}]


def jobs(toy_set: Path) -> dict[str, JobConfig]:
    return {
        "bn-bsp": make_job(toy_set),
        "bn-fedavg": make_job(toy_set, sync=FEDAVG, partition=ONE_LABEL),
        "dropout-bsp": make_job(toy_set, model=DROPOUT, partition=ONE_LABEL),
        "dropout-fedavg": make_job(
            toy_set, model=DROPOUT, partition=ANEW, sync={**FEDAVG, "optimizer_state": "average"}
        ),
        # With these seeds the law leaves the first, and the last, of four clients without a sample.
        "empty": make_job(toy_set, seed=11, partition=SPARSE, sync={**FEDAVG, "optimizer_state": "average"}),
        "empty-bsp": make_job(toy_set, seed=7, partition=SPARSE, stop={"steps": 6}),
        "float32": make_job(toy_set, precision="float32"),
        "bsp-plain": make_job(toy_set, optimizer=PLAIN_SGD, **FEW),
        "h1-plain": make_job(toy_set, optimizer=PLAIN_SGD, sync={"kind": "fedavg", "local_steps": 1}, **FEW),
        "unequal": make_job(toy_set, model=VIT, partition=ANEW, batching={"local_batch_size": [1, 7, 2, 22]}, **FEW),
        "phases": make_job(
            toy_set, batching=PHASES, gradients={"watch": WATCHED, "noise_scale": {}}, stop={"steps": 28}
        ),
        "equal": make_job(toy_set, model=VIT, partition=ANEW, batching={"local_batch_size": 8}, **FEW),
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, toy_set: Path) -> dict[int, Path]:
    """Folder of the finished runs by number of ranks; `single` is the one-client form of `unequal`."""
    base = tmp_path_factory.mktemp("ranks")
    made = jobs(toy_set)
    for name, job in made.items():
        (base / f"{name}.yaml").write_text(job.to_yaml())
    single = make_job(toy_set, model=VIT, clients=1, partition=ANEW, batching={"local_batch_size": 32}, **FEW)
    (base / "single.yaml").write_text(single.to_yaml())
    folders = {}
    for size in (1, 2, 4):
        folder = base / str(size)
        names = [*made, "single"] if size == 1 else list(made)
        todo = [
            [str(base / f"{name}.yaml"), str(folder / name), "gradient" if name == "float32" else "train"]
            for name in names
        ]
        listing = base / f"list{size}.json"
        listing.write_text(json.dumps(todo))
        program = Path(__file__).with_name("jobs_program.py")
        assert run_mpirun(size, [sys.executable, str(program), str(listing)]) == 0
        folders[size] = folder
    return folders


def losses(run: RunLogs) -> np.ndarray:
    """[step, client]"""
    steps = np.sort(run.tables["steps"], order=["step", "client"])
    return steps["loss"].reshape(-1, 4)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ["bn-bsp", "bn-fedavg", "dropout-bsp", "dropout-fedavg"])
def test_losses_do_not_depend_on_the_number_of_ranks(runs: dict[int, Path], name: str, size: int) -> None:
    one, many = read_run(runs[1] / name), read_run(runs[size] / name)
    assert losses(one).shape == (20, 4)
    difference = np.abs(losses(many) - losses(one)).max()
    print(f"{name}, {size} ranks: largest difference of a loss {difference:.1e}")
    assert difference <= 1e-6
    # A run in which nothing is learnt would agree, too.
    assert losses(one)[-5:].mean() < losses(one)[:5].mean()
    for split in ("loss", "top1", "top5"):
        np.testing.assert_allclose(many.tables["evals"][split], one.tables["evals"][split], atol=1e-6)


@pytest.mark.parametrize("size", [2, 4])
def test_detectors_see_the_same_on_every_number_of_ranks(runs: dict[int, Path], size: int) -> None:
    """And so does the batch policy that decides by one of them."""
    one, many = (read_run(runs[n] / "phases").tables for n in (1, size))
    assert one["metrics"]["name"].tolist() == many["metrics"]["name"].tolist()
    np.testing.assert_allclose(many["metrics"]["value"], one["metrics"]["value"], rtol=1e-6)
    for name in ("squared_norm", "log_ratio", "accordion", "selsync", "noise_scale"):
        changes = one["metrics"]["value"][one["metrics"]["name"] == f"{name} change".encode()]
        assert len(changes) == 28 and np.isfinite(changes[-1]), name
    assert one["plans"].tolist() == many["plans"].tolist() and len(one["plans"]) > 4


@pytest.mark.parametrize("size", [2, 4])
def test_first_reduced_gradient_agrees_in_float32(runs: dict[int, Path], size: int) -> None:
    one, many = (np.load(runs[n] / "float32" / "gradient.npy") for n in (1, size))
    difference = np.linalg.norm(many - one) / np.linalg.norm(one)
    print(f"float32 gradient, {size} ranks: relative difference {difference:.1e}")
    assert difference <= 1e-5


@pytest.mark.parametrize("size", [1, 2, 4])
def test_unequal_batches_equal_one_large_batch(runs: dict[int, Path], size: int) -> None:
    single = torch.load(runs[1] / "single" / "model.pt")
    for name in ("unequal", "equal"):
        split = torch.load(runs[size] / name / "model.pt")
        for key, value in single.items():
            torch.testing.assert_close(split[key], value, rtol=0, atol=1e-9, msg=f"{name}: {key}")


@pytest.mark.parametrize("size", [1, 2, 4])
def test_averaging_every_step_with_plain_sgd_is_bsp(runs: dict[int, Path], size: int) -> None:
    bsp, fedavg = (torch.load(runs[size] / name / "model.pt") for name in ("bsp-plain", "h1-plain"))
    for key, value in bsp.items():
        # BatchNorm's running statistics are averaged along the way in one, at the end in the other.
        tolerance = 1e-9
        torch.testing.assert_close(fedavg[key], value, rtol=tolerance, atol=tolerance, msg=key)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", ["empty", "empty-bsp"])
def test_a_client_without_samples_takes_part_in_every_reduction(runs: dict[int, Path], name: str, size: int) -> None:
    one, many = read_run(runs[1] / name), read_run(runs[size] / name)
    rows = np.sort(many.tables["steps"], order=["step", "client"])
    sizes = rows["local_batch_size"][:4]
    assert sorted(sizes) == [0, 4, 4, 4]
    assert np.isnan(rows["loss"][rows["local_batch_size"] == 0]).all()
    np.testing.assert_allclose(losses(many), losses(one), atol=1e-6)
    np.testing.assert_allclose(many.tables["evals"]["loss"], one.tables["evals"]["loss"], atol=1e-6)
    assert rows["num_samples"][:8].tolist() == [12] * 4 + [24] * 4


@pytest.mark.parametrize("size", [1, 2, 4])
def test_ranks_together_see_every_sample_once_per_epoch(runs: dict[int, Path], size: int) -> None:
    """B = 16 of 96 samples: six steps are an epoch."""
    taken = np.concatenate([np.load(runs[size] / "bn-bsp" / f"samples{rank}.npy") for rank in range(size)])
    for epoch in range(3):
        samples = taken[taken[:, 1] // 6 == epoch][:, 2]
        assert sorted(samples) == list(range(96))
    for client in range(4):
        own = taken[taken[:, 0] == client]
        held = [sorted(own[own[:, 1] // 6 == epoch][:, 2]) for epoch in range(3)]
        assert held[0] == held[1] == held[2], "i.i.d. shards never change hands"


@pytest.mark.parametrize("size", [1, 2, 4])
def test_clients_keep_to_their_own_labels(runs: dict[int, Path], size: int) -> None:
    """One label per client: 24 samples of it, six steps a pass; sample i has label i mod 4."""
    taken = np.concatenate([np.load(runs[size] / "bn-fedavg" / f"samples{rank}.npy") for rank in range(size)])
    assert (taken[:, 2] % 4 == taken[:, 0]).all()
    for client in range(4):
        own = taken[taken[:, 0] == client]
        for pass_ in range(3):
            assert sorted(own[own[:, 1] // 6 == pass_][:, 2]) == list(range(client, 96, 4))


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", ["bn-bsp", "bn-fedavg", "unequal"])
def test_every_sample_is_counted(runs: dict[int, Path], toy_set: Path, name: str, size: int) -> None:
    job = jobs(toy_set)[name]
    sizes = job.local_batch_sizes()
    run = read_run(runs[size] / name)
    steps = np.sort(run.tables["steps"], order=["step", "client"])
    count = job.stop.steps
    assert count is not None
    assert steps["step"].tolist() == [s for s in range(count) for _ in range(4)]
    assert steps["client"].tolist() == [0, 1, 2, 3] * count
    assert steps["local_batch_size"].tolist() == sizes * count
    assert steps["num_samples"].tolist() == [sum(sizes) * (s + 1) for s in range(count) for _ in range(4)]
    np.testing.assert_allclose(steps["epoch"], steps["num_samples"] / 96)
    expected_round = steps["step"] // 5 if name == "bn-fedavg" else steps["step"]
    assert steps["round"].tolist() == expected_round.tolist()
    evaluated_at = [6] if count == 6 else [10, 20]
    assert run.tables["evals"]["num_samples"].tolist() == [n * sum(sizes) for n in evaluated_at]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_provenance_says_horovod_and_times_obey_eq_2(runs: dict[int, Path], size: int) -> None:
    run = read_run(runs[size] / "bn-bsp")
    assert run.provenance["engine"] == "horovod"
    assert run.provenance["num_ranks"] == size
    assert "Horovod 0.28.1" in run.provenance["mpi_library"]
    assert "Open MPI" in run.provenance["mpi_library"] or "MPICH" in run.provenance["mpi_library"]
    steps = run.tables["steps"]
    total = steps["t_data_s"] + steps["t_compute_s"] + steps["t_sync_s"]
    np.testing.assert_allclose(steps["t_step_s"], total, rtol=1e-12)
    for column in ("t_data_s", "t_compute_s", "t_sync_s"):
        assert (steps[column] > 0).all(), column
    assert not run.torn
