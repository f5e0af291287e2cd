"""The recipes of the paper's tables and figures: every file expands, and says what it should."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hpclbfl.analysis.paper.rows import paper_table, row_of
from hpclbfl.analysis.read.configs import flatten
from hpclbfl.config.job import load_job
from hpclbfl.core.errors import ConfigError
from hpclbfl.slurm.expand import Run, expand
from hpclbfl.slurm.resources import load_profile
from hpclbfl.slurm.sweep import sweep
from hpclbfl.slurm.sweep_file import read_sweep
from tests.slurm.conftest import NamedData

PAPER = Path(__file__).parents[2] / "jobs" / "paper"
SMALL = PAPER / "small"
COUNTS = {"table1": 12 * 3, "table2": 12 * 3, "fig3": 18 * 3, "fig6": 12 * 3, "fig7": 11 * 3, "fig8": 6 * 3}
"""Runs of each sweep: arms times seeds."""
SWEEPS = list(COUNTS)
PLANS = ["fig1-resnet50", "fig1-vgg11", "fig1-alexnet", "fig1-vit", "fig4-resnet18"]
SCALE = 25
"""Steps of the paper that one small step stands for."""

pytestmark = pytest.mark.skipif(not PAPER.is_dir(), reason="the job files are in the checkout alone")


def runs_of(path: Path) -> list[Run]:
    return expand(read_sweep(path), path, NamedData()).runs


def job_of(run: Run) -> dict[str, Any]:
    return flatten(run.job.model_dump(mode="json"))


def values(runs: list[Run], key: str) -> list[Any]:
    return sorted({job_of(run).get(key) for run in runs}, key=lambda value: (value is not None, value))


def test_there_is_a_file_for_every_table_and_figure_at_both_scales() -> None:
    names = {path.stem for path in PAPER.glob("*.yaml")}
    assert names == {*SWEEPS, *PLANS}
    assert {path.stem for path in SMALL.glob("*.yaml")} == {*names, "claim", "two-at-a-time"}


@pytest.mark.parametrize("folder", [PAPER, SMALL], ids=["full", "small"])
@pytest.mark.parametrize(("name", "count"), list(COUNTS.items()))
def test_sweeps_expand(folder: Path, name: str, count: int) -> None:
    runs = runs_of(folder / f"{name}.yaml")
    others = [run for run in runs if not run.job.name.startswith(f"{name}-")]
    assert {run.job.name for run in others} <= {"batchnorm-bsp", "batchnorm-fa"}
    assert len(runs) - len(others) == count
    assert values(runs, "seed") == [0, 1, 2]


@pytest.mark.parametrize("folder", [PAPER, SMALL], ids=["full", "small"])
@pytest.mark.parametrize("name", PLANS)
def test_plans_are_jobs(folder: Path, name: str) -> None:
    job = load_job(folder / f"{name}.yaml")
    assert job.name.removesuffix("-small") == name and job.clients == 1


@pytest.mark.parametrize("path", sorted(PAPER.parent.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_job_says_how_its_samples_are_spread(path: Path) -> None:
    """Federated clients keep shards; where batches are unequal, or stand for data-parallel training, none are kept."""
    if path.stem == "two-at-a-time":
        return
    assert re.search(r"\bpartition: ", path.read_text()), "states no partition"
    name, is_sweep = path.stem, "base:" in path.read_text() or "grid:" in path.read_text()
    jobs = [run.job for run in runs_of(path)] if is_sweep else [load_job(path)]
    iid = {job.partition.reshuffle for job in jobs if job.partition.kind == "iid"}
    is_federated = name.startswith(("table", "cifar10", "quickstart", "sweep"))
    assert iid <= {not is_federated}


@pytest.mark.parametrize("folder", [PAPER, SMALL], ids=["full", "small"])
@pytest.mark.parametrize("name", ["table1", "table2"])
def test_every_row_of_a_table_has_three_runs_of_ten_clients(folder: Path, name: str) -> None:
    runs, table = runs_of(folder / f"{name}.yaml"), paper_table(name)
    found = [(row_of(job_of(run), name, table), run) for run in runs]
    assert {row.key: sum(row is other for other, _ in found) for row in table.rows} == dict.fromkeys(
        (row.key for row in table.rows), 3
    )
    assert values(runs, "clients") == [10]


def test_full_scale_tables_have_the_papers_nets_partitions_and_h() -> None:
    for name in ("table1", "table2"):
        runs, table = runs_of(PAPER / f"{name}.yaml"), paper_table(name)
        assert values(runs, "model.name") == ["alexnet", "resnet50", "vgg11"]
        for run in runs:
            # Under another name the job alone says the same.
            job = job_of(run)
            assert row_of({**job, "name": "mine"}, name, table) == row_of(job, name, table) is not None
    assert values(runs_of(PAPER / "table2.yaml"), "sync.local_steps") == [250, 1000]


def test_small_tables_state_their_scaled_h() -> None:
    # An epoch of CIFAR-10 is 156 steps of 10 clients with 32 samples each.
    for name, wanted in (("table1", {"fa": 50_000 // 320}), ("table2", {"h250": 250, "h1000": 1000})):
        table, text = paper_table(name), (SMALL / f"{name}.yaml").read_text()
        for run in runs_of(SMALL / f"{name}.yaml"):
            job, row = job_of(run), row_of(job_of(run), name, table)
            if job["sync.kind"] == "bsp":
                continue
            paper_h = wanted[row.method if row else "fa"]
            assert job["sync.local_steps"] == round(paper_h / SCALE)
            assert re.search(rf"\b{job['sync.local_steps']}\b", text.partition("#   H  ")[2].partition("name:")[0])


@pytest.mark.parametrize("name", [*SWEEPS, "claim"])
def test_small_sweeps_say_what_becomes_of_h(name: str) -> None:
    path = SMALL / f"{name}.yaml"
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    kinds = values(runs_of(path), "sync.kind")
    wanted = "H = 1" if kinds == ["bsp"] else "#   H  "
    assert any(wanted in line for line in comment)
    assert all(run.ranks == 1 for run in runs_of(path))


@pytest.mark.parametrize("folder", [PAPER, SMALL], ids=["full", "small"])
def test_figures_have_the_papers_batches_factors_and_thresholds(folder: Path) -> None:
    for name in ("fig3", "fig6"):
        batches = values(runs_of(folder / f"{name}.yaml"), "batching.global_batch_size")
        assert batches == [32, 64, 128, 256, 512, 1024]
    for name, threshold, batches in (("fig7", 0.5, [32, 1024]), ("fig8", 0.8, [64, 1024])):
        runs = runs_of(folder / f"{name}.yaml")
        assert values(runs, "gradients.scaler.factor") == [None, 2.0, 4.0, 8.0, 16.0]
        assert values(runs, "gradients.scaler.threshold") == [None, threshold]
        assert values(runs, "batching.global_batch_size") == batches


def test_the_claim_has_its_controls() -> None:
    runs = runs_of(SMALL / "claim.yaml")
    jobs = [job_of(run) for run in runs if run.job.seed == 0]
    large = [job for job in jobs if job["batching.global_batch_size"] == 1024]
    small = [job for job in jobs if job["batching.global_batch_size"] == 32]
    for when in ("delta_ge", "always", "random"):
        factors = [job["gradients.scaler.factor"] for job in large if job.get("gradients.scaler.when") == when]
        assert factors == [2.0, 4.0, 8.0, 16.0]
    plain = [job for job in large if "gradients.scaler.factor" not in job]
    rates = [job["optimizer.lr"] for job in plain if job["optimizer.weight_decay"] == 1e-4]
    assert rates == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32]
    assert [job["optimizer.lr"] for job in small] == [0.01, 0.04, 0.08, 0.16]
    # lr X with wd / X: the product is the baseline's.
    decayed = [job for job in plain if job["optimizer.weight_decay"] != 1e-4]
    assert [job["optimizer.lr"] / 0.01 for job in decayed] == pytest.approx([4.0, 16.0])
    for job in decayed:
        assert job["optimizer.lr"] * job["optimizer.weight_decay"] == pytest.approx(0.01 * 1e-4)
    # Equal samples at the ends, and an evaluation of the small batch where the large one ends.
    assert {job["stop.steps"] * job["batching.global_batch_size"] for job in jobs} == {76_800}
    assert {75 % job["evaluate.every_steps"] for job in small} == {0} and {job["stop.steps"] for job in large} == {75}


def test_small_sweeps_run_two_at_a_time() -> None:
    profile = load_profile(str(SMALL / "two-at-a-time.yaml"))
    assert (profile.kind, profile.max_parallel, profile.cpus_per_rank) == ("local", 2, 1)


def test_missing_data_are_told_in_one_line(tmp_path: Path) -> None:
    text = (PAPER / "fig8.yaml").read_text()
    path = tmp_path / "a" / "b" / "fig8.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        sweep(path, "local", dry_run=True, directory=tmp_path / "runs")
    message = str(error.value)
    assert f"{tmp_path / 'data' / 'cifar100.h5'}: no such file" in message
    assert "hpclbfl data pack" in message and "\n" not in message
