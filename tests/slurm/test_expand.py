"""From a sweep file to its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hpclbfl.config.job import load_job
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.yamlfile import parse_value
from hpclbfl.slurm.expand import Expansion, expand
from hpclbfl.slurm.sweep_file import SweepConfig, describe, read_sweep
from tests.slurm.conftest import BASE, NamedData, write_sweep


def expanded(path: Path) -> Expansion:
    return expand(read_sweep(path), path, NamedData())


def runs_of(tmp_path: Path, **keys: Any) -> list[dict[str, Any]]:
    return [run.overrides for run in expanded(write_sweep(tmp_path, **keys)).runs]


def refused(tmp_path: Path, **keys: Any) -> str:
    with pytest.raises(ConfigError) as error:
        expanded(write_sweep(tmp_path, **keys))
    message = str(error.value)
    assert message.isprintable() and message.startswith(str(tmp_path / "sweep.yaml: "))
    assert "whole:" not in message
    return message.removeprefix(str(tmp_path / ""))


def test_axes_combine_as_a_product_seeds_fastest(tmp_path: Path) -> None:
    found = runs_of(
        tmp_path,
        grid={"optimizer.lr": [0.1, 0.2]},
        zip={"clients": [2, 4], "batching.local_batch_size": [8, 4]},
        list=[{"sync": {"kind": "bsp"}}, {"sync.kind": "fedavg", "sync.local_steps": 5}],
        seeds=2,
    )
    assert len(found) == 2 * 2 * 2 * 2
    zipped = {"clients": 2, "batching.local_batch_size": 8}
    assert found[0] == {"optimizer.lr": 0.1, **zipped, "sync": {"kind": "bsp"}, "seed": 0}
    assert found[1] == {**found[0], "seed": 1}
    assert found[2] == {"optimizer.lr": 0.1, **zipped, "sync.kind": "fedavg", "sync.local_steps": 5, "seed": 0}
    assert found[-1]["clients"] == 4 and found[-1]["batching.local_batch_size"] == 4


def test_values_reach_the_jobs(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, grid={"gradients.scaler": [None, {"factor": 4.0}], "seed": [3]})
    plain, scaled = (run.job for run in expanded(path).runs)
    assert plain.gradients.scaler is None and plain.seed == scaled.seed == 3
    assert scaled.gradients.scaler is not None and scaled.gradients.scaler.factor == 4.0
    assert scaled.optimizer.lr == BASE["optimizer"]["lr"]


def test_a_sweep_without_axes_is_one_run(tmp_path: Path) -> None:
    assert runs_of(tmp_path) == [{}]


def test_ids_are_those_of_the_experiment(tmp_path: Path) -> None:
    first = expanded(write_sweep(tmp_path / "a", grid={"optimizer.lr": [0.1, 0.2]}, seeds=[7])).runs
    more = expanded(
        write_sweep(tmp_path / "b", list=[{"seed": 7, "optimizer.lr": lr} for lr in (0.3, 0.2)], ranks=2)
    ).runs
    assert first[1].id == more[1].id == f"demo-{first[1].digest}"
    assert len({run.id for run in first + more}) == 3
    assert (more[1].ranks, first[1].ranks) == (2, 1)


def test_runs_that_differ_in_their_end_alone_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, grid={"stop": [{"steps": 9}, {"steps": 12}]}) == (
        "/sweep.yaml: run stop={steps: 12}: differs from run stop={steps: 9} only in 'stop', so that they are one "
        "run: keep the longest"
    )


def test_the_same_experiment_twice_is_one_run_and_a_note(tmp_path: Path) -> None:
    found = expanded(write_sweep(tmp_path, list=[{"optimizer.lr": 0.1}, {"comm.bucket_mb": 1, "optimizer.lr": "1e-1"}]))
    assert len(found.runs) == 1
    assert "comm.bucket_mb=1 optimizer.lr=0.1 is the same experiment as optimizer.lr=0.1: one run" in found.notes[0]


def test_exclusions_by_overrides_base_and_defaults(tmp_path: Path) -> None:
    grid = {"optimizer.lr": [0.1, 0.2], "precision": ["float32", "float64"]}
    exclude = [{"optimizer.lr": 0.1, "precision": "float64"}]
    found = expanded(write_sweep(tmp_path, grid=grid, exclude=exclude, seeds=2))
    assert len(found.runs) == 6 and "exclude leaves out 2 of 8 runs" in found.notes
    # A default that nobody wrote down; and part of a section.
    grid = {"sync": [{"kind": "bsp"}, {"kind": "fedavg", "local_steps": 5}]}
    assert len(runs_of(tmp_path, grid=grid, exclude=[{"precision": "float32", "sync": {"kind": "fedavg"}}])) == 1
    notes = expanded(write_sweep(tmp_path, grid=grid, exclude=[{"seed": 9}])).notes
    assert notes == ["exclude: seed=9 leaves out no run"]


def test_what_is_excluded_need_not_be_valid(tmp_path: Path) -> None:
    grid = {
        "sync": [{"kind": "bsp"}, {"kind": "fedavg", "local_steps": 5}],
        "gradients.weight_noise": [None, 0.5],
    }
    assert "gradients.weight_noise" in refused(tmp_path, grid=grid)
    exclude = [{"sync.kind": "fedavg", "gradients.weight_noise": 0.5}]
    assert len(runs_of(tmp_path, grid=grid, exclude=exclude)) == 3


def test_excluding_all_is_refused(tmp_path: Path) -> None:
    assert "exclude leaves out all 1 runs" in refused(tmp_path, exclude=[{"clients": 2}])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"grids": {}},
            "unknown key 'grids': did you mean 'grid'? valid here: name, job, base, grid, zip, list, seeds",
        ),
        ({"resources": {"memry": "4G"}}, "unknown key 'resources.memry': did you mean 'memory'?"),
        ({"job": "job.yaml"}, "/sweep.yaml: give exactly one of 'job' (a job file) and 'base'"),
        ({"grid": {"optimizer.lr": 0.1}}, "grid: 'optimizer.lr' takes a list of values"),
        ({"grid": {"optimizer.lr": []}}, "grid: 'optimizer.lr' takes a list of values"),
        ({"zip": {"clients": [1, 2], "seed": [1]}}, "the lists under 'zip' must be of one length: clients 2, seed 1"),
        ({"grid": {"seed": [1]}, "seeds": 3}, "'seed' (grid) and 'seed' (seeds) set the same value"),
        ({"grid": {"sync": [{"kind": "bsp"}]}, "list": [{"sync.kind": "bsp"}]}, "'sync' (grid) and 'sync.kind' (list)"),
        ({"seeds": -1}, "seeds: input should be greater than 0, not -1"),
        ({"seeds": 10**9}, "seeds: input should be less than or equal to 20000, not 1000000000"),
        ({"seeds": [1, True]}, "seeds.1: should be a whole number, not true"),
        ({"seeds": []}, "seeds: should be a list of whole numbers, or how many"),
        ({"seeds": "3"}, "seeds: should be a list of whole numbers, or how many, not '3'"),
        ({"ranks": "all"}, "ranks: should be a whole number above 0, or 'clients', not 'all'"),
        ({"grid": {"a": [0] * 150, "b": [0] * 150}}, "its axes make more than 20,000 runs, the most that a sweep may"),
        ({"list": [{f"k{i}": 0 for i in range(1001)}]}, "grid, zip and list set 1001 keys; 1000 are the most"),
        ({"grid": {"a..b": [1]}}, "run a..b=1: 'a..b' is not a valid key: write section.key"),
        ({"list": [{"optimizer.lr": 1, "optimizer": {"lr": 2}}]}, "'optimizer' would overwrite 'optimizer.lr'"),
        ({"name": "a/b"}, "name: string should match pattern"),
        ({"name": "x" * 101}, "name: string should have at most 100 characters"),
        ({"grid": {"optimizer.lrr": [1]}}, "run optimizer.lrr=1: unknown key 'optimizer.lrr': did you mean 'lr'?"),
        ({"grid": {"optimizer.lr": [0.1, -1]}}, "run optimizer.lr=-1: optimizer.lr: input should be greater than 0"),
        ({"grid": {"clients": [None]}}, "run clients=null: clients: must be stated in a sweep"),
        ({"grid": {"clients.x": [1]}}, "run clients.x=1: clients.x: 'clients' is a value, it has no keys"),
        ({"ranks": 3}, "run of the base job: ranks: 3 for 2 clients leaves some without work"),
        ({"grid": {"batching": [{"local_batch_size": [1, 2, 3]}]}}, "lists 3 sizes for 2 clients"),
        ({"grid": {"batching": [{"global_batch_size": 1}]}}, "batching.global_batch_size: 1 is less than one sample"),
    ],
)
def test_wrong_sweeps_are_refused_in_one_line(tmp_path: Path, keys: dict[str, Any], words: str) -> None:
    assert words in refused(tmp_path, **keys)


def test_ranks_may_follow_the_clients(tmp_path: Path) -> None:
    found = expanded(write_sweep(tmp_path, grid={"clients": [1, 2, 4]}, ranks="clients"))
    assert [run.ranks for run in found.runs] == [1, 2, 4]


def test_paths_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "base.yaml").write_text(yaml.safe_dump({**BASE, "data": {"name": "packed", "path": "set.h5"}}))
    sweep = tmp_path / "sweeps" / "s.yaml"
    sweep.parent.mkdir()
    sweep.write_text("name: s\njob: ../jobs/base.yaml\nlist: [{seed: 0}, {seed: 1, data.path: other.h5}]\n")
    own, other = (run.job.data.path for run in expanded(sweep).runs)
    assert (own, other) == (str(tmp_path / "jobs" / "set.h5"), str(tmp_path / "sweeps" / "other.h5"))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    for text, words in (
        ("name: s\njob: none.yaml\n", "none.yaml: cannot be read: No such file"),
        ("name: s\nname: t\n", "s.yaml:2: not valid YAML: key 'name' is given twice"),
        ("- 1\n", "s.yaml: not a sweep file"),
        ("name: s\nbase: {a: !!bool foo}\n", "s.yaml:2: not valid YAML: 'foo' is not of type bool"),
        ("name: [\n", "not valid YAML"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            expanded(path)


def test_yaml_numbers_and_times(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "name: s\nbase: {clients: 2, data: {name: digits}, model: {name: resnet8}}\n"
        "grid: {optimizer.weight_decay: [5e-4, 1.e-3, .5, 0]}\nresources: {time: 1:30:00}\n"
    )
    sweep = read_sweep(path)
    assert sweep.grid["optimizer.weight_decay"] == [5e-4, 1e-3, 0.5, 0]
    assert sweep.resources.time == "1:30:00"


@given(st.lists(st.integers(1, 4), max_size=3), st.integers(1, 3), st.integers(1, 3))
def test_the_number_of_combinations_is_the_product(lengths: list[int], num_rows: int, num_seeds: int) -> None:
    sweep = SweepConfig(
        name="s",
        base={},
        grid={f"g{i}": list(range(n)) for i, n in enumerate(lengths)},
        list=[{"p": row} for row in range(num_rows)],
        seeds=num_seeds,
    )
    found = [tuple(point.items()) for point in sweep.combinations()]
    expected = num_rows * num_seeds
    for length in lengths:
        expected *= length
    assert len(found) == len(set(found)) == expected


def test_the_same_numbers_in_a_job_and_in_a_sweep(tmp_path: Path) -> None:
    text = "data: {name: digits}\nmodel: {name: resnet8}\nclients: 010\nstop: {steps: 012}\n"
    (tmp_path / "job.yaml").write_text(text)
    path = tmp_path / "s.yaml"
    path.write_text("name: s\njob: job.yaml\ngrid: {seed: [0777, 0x1f]}\n")
    jobs = [run.job for run in expanded(path).runs]
    assert [(job.seed, job.clients, job.stop.steps) for job in jobs] == [(777, 10, 12), (31, 10, 12)]
    assert load_job(tmp_path / "job.yaml", ["seed=0777"]) == jobs[0]


@pytest.mark.parametrize("value", ["1e5", "012", "yes", "a b", "x\ny", "", None, True, 0.5, [1, "1"], {"a": "1:30"}])
def test_a_label_reads_back_as_an_override(value: Any) -> None:
    label = describe({"key": value})
    assert label.isprintable()
    assert parse_value(label.removeprefix("key="), "test") == value
