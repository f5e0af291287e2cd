"""Jobs as flat columns, and which runs are one arm."""

import polars as pl
import pytest

from hpclbfl.analysis.read.arms import differing_keys, with_arms
from hpclbfl.analysis.read.configs import config_columns, describe_data, describe_partition, describe_sync, flatten
from hpclbfl.analysis.read.frames import RUN_COLUMNS, RUN_TYPES
from hpclbfl.config.components import DATASETS
from tests.components import config_of


def runs(*jobs, **about):
    """A frame `runs` of these jobs; `about`: lists of other columns, one value per job."""
    count = len(jobs)
    given = {"run": [f"r{i}" for i in range(count)], "state": ["done"] * count, **about}
    columns = [
        pl.Series(name, given.get(name, [None] * count), dtype=RUN_TYPES.get(name, pl.String()))
        for name in RUN_COLUMNS
        if name != "arm"
    ]
    return with_arms(pl.DataFrame([*columns, *config_columns([flatten(job) for job in jobs], RUN_COLUMNS)]))


def arms(*jobs, **about):
    return runs(*jobs, **about)["arm"].to_list()


def job(seed=0, **sections):
    return {"name": "job", "seed": seed, "clients": 4, "model": {"name": "resnet8"}, **sections}


def scaler(factor):
    return {"scaler": None if factor is None else {"factor": factor, "threshold": 0.5}, "measure": True}


def test_flatten():
    config = {"a": 1, "b": {"c": {"d": 2.5}, "e": None, "f": {}}, "g": [1, [2]], "h": (0.9, 0.99)}
    assert flatten(config) == {"a": 1, "b.c.d": 2.5, "b.e": None, "b.f": "{}", "g": "[1,[2]]", "h": "[0.9,0.99]"}


def test_columns_have_the_narrowest_type_and_stand_by_section():
    made = config_columns(
        [
            {"s.a": 1, "t": True, "s.b": 1, "mixed": "x"},
            {"s.a": 2, "t": None, "s.b": 0.5, "mixed": 3, "s.late": None},
            {"run": 7},
        ],
        taken=["run"],
    )
    assert {s.name: (s.dtype, s.to_list()) for s in made} == {
        "s.a": (pl.Int64, [1, 2, None]),
        "s.b": (pl.Float64, [1.0, 0.5, None]),
        "s.late": (pl.String, [None] * 3),
        "t": (pl.Boolean, [True, None, None]),
        "mixed": (pl.String, ["x", "3", None]),
        "config.run": (pl.Int64, [None, None, 7]),
    }
    assert [s.name for s in made][:3] == ["s.a", "s.b", "s.late"]


def test_a_section_that_is_null_elsewhere_has_no_column():
    names = [s.name for s in config_columns([flatten(job(gradients=scaler(f))) for f in (None, 2.0)])]
    assert "gradients.scaler" not in names
    assert "gradients.scaler.factor" in names


def test_what_is_absent_is_named_once():
    gates = [None, *({"factor": f, "when": when} for f in (2.0, 4.0) for when in ("delta_ge", "random"))]
    frame = runs(*(job(gradients={"scaler": gate}) for gate in gates))
    assert frame["arm"].to_list() == ["no scaler", "X=2, delta_ge", "X=2, random", "X=4, delta_ge", "X=4, random"]


def test_arms_differ_in_more_than_the_seed():
    frame = runs(*(job(seed, gradients=scaler(f)) for f in (16.0, 2.0, None) for seed in (0, 1)))
    assert frame["arm"].to_list() == ["X=16", "X=16", "X=2", "X=2", "no scaler", "no scaler"]
    assert frame["arm"].dtype.categories.to_list() == ["no scaler", "X=2", "X=16"]
    keys = ["seed", "gradients.scaler.factor", "gradients.scaler.threshold"]
    assert differing_keys(frame) == keys


def test_names_and_places_tell_no_arms_apart():
    jobs = [{**job(seed), "name": f"n{seed}", "data": {"path": f"/{seed}"}} for seed in (0, 1)]
    assert arms(*jobs, data_fingerprint=["f", "f"]) == ["n0", "n0"]
    # Without a fingerprint the path is all there is; other data are other arms.
    assert len(set(arms(*jobs))) == 2
    assert arms(*jobs, data_fingerprint=["aaaa", "bbbb"]) == ["data=0", "data=1"]


def test_what_is_not_in_the_hash_tells_no_arms_apart():
    jobs = [{**job(seed), "comm": {"engine": engine}} for seed, engine in enumerate(("horovod", "horovod", "mpi"))]
    assert len(set(arms(*jobs, engine=["horovod", "horovod", "mpi"]))) == 1
    jobs = [{**job(seed), "data": {"path": "/d", "workers": workers}} for seed, workers in enumerate((2, 4))]
    assert len(set(arms(*jobs))) == 1


@pytest.mark.parametrize(
    ("jobs", "labels"),
    [
        ([job(), job(1)], ["job", "job"]),
        ([job(optimizer={"lr": lr}) for lr in (0.1, 0.01)], ["lr=0.1", "lr=0.01"]),
        ([job(sync={"kind": k, "local_steps": h}) for k, h in (("bsp", None), ("fedavg", 25))], ["bsp", "fedavg H=25"]),
        ([job(optimizer={"name": n}) for n in ("sgd", "lamb")], ["sgd", "lamb"]),
        ([job(optimizer={"nesterov": n}) for n in (True, False)], ["nesterov=true", "nesterov=false"]),
        (
            [job(batching={"local_batch_size": b}) for b in (32, [1] * 20)],
            ["b=32", "b=[1,1,1,1,1,1,1,1,1,1,1,1..."],
        ),
        (
            [job(partition={"kind": "labels_per_client", "labels": n}, clients=c) for n in (1, 2) for c in (4, 8)],
            [
                "clients=4, 1 label/client",
                "clients=8, 1 label/client",
                "clients=4, 2 labels/client",
                "clients=8, 2 labels/client",
            ],
        ),
    ],
)
def test_labels(jobs, labels):
    assert arms(*jobs) == labels


def test_labels_are_unique_where_texts_are_not():
    jobs = [job(batching={"local_batch_size": [1] * 20 + [last]}) for last in (1, 2)]
    first, second = arms(*jobs)
    assert second == f"{first} #2"


def test_a_scaling_study_is_several_arms():
    same = [job(0), job(0), job(1)]
    assert arms(*same, num_ranks=[1, 2, 2], engine=["local", "mpi", "mpi"]) == ["local", "mpi", "mpi"]
    assert arms(job(0), job(0), num_ranks=[1, 2]) == ["ranks=1", "ranks=2"]
    # Another seed on other ranks is the same experiment.
    assert arms(job(0), job(1), num_ranks=[1, 2]) == ["job", "job"]


def test_unreadable_runs_have_no_arm():
    frame = runs(job(), {}, job(1), state=["done", "unreadable", "running"])
    assert frame["arm"].to_list() == ["job", None, "job"]
    assert differing_keys(frame) == ["seed"]


def test_runs_of_other_versions_of_the_job_file():
    assert arms(job(), job(new={"key": 3})) == ["key=none", "key=3"]
    assert runs({"clients": 1})["seed"].to_list() == [0]


@pytest.mark.parametrize(
    ("config", "sync", "partition"),
    [
        ({}, "bsp", "iid"),
        ({"sync": {"kind": "fedavg", "local_epochs": 0.5}}, "fedavg H=0.5 ep", "iid"),
        ({"sync": {"kind": "fedavg", "local_steps": 250, "local_epochs": None}}, "fedavg H=250", "iid"),
        ({"partition": {"kind": "dirichlet", "alpha": 0.1}}, "bsp", "dirichlet 0.1"),
        ({"partition": {"kind": "labels_per_client", "labels": 2}}, "bsp", "2 labels/client"),
    ],
)
def test_descriptions(config, sync, partition):
    assert (describe_sync(flatten(config)), describe_partition(flatten(config))) == (sync, partition)


@pytest.mark.parametrize(
    "data", [{"name": "digits"}, {"name": "packed", "path": "/d/x.h5"}, {"name": "imagefolder", "path": "/d"}]
)
def test_data_are_called_as_the_job_calls_them(data):
    assert describe_data(flatten({"data": data})) == config_of(DATASETS, **data).title
    assert describe_data({}) == ""
