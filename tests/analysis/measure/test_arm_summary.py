"""Which arms are compared with each other."""

import pytest

from hpclbfl.analysis.measure.arm_summary import ALONE, MAX_ALONE, arm_tasks, with_few_alone
from hpclbfl.analysis.read.arms import data_titles
from tests.analysis.read.test_arms import job, runs


def nets(*names, batches=(1, 2)):
    return [
        {"clients": 1, "model": {"name": name}, "batching": {"local_batch_size": b}, "data": {"name": "digits"}}
        for name in names
        for b in batches
    ]


def test_a_net_is_a_task():
    tasks = arm_tasks(runs(*nets("x", "y")))
    assert tasks == {"x": ["x, b=1", "x, b=2"], "y": ["y, b=1", "y, b=2"]}


def test_one_net_is_one_task():
    assert arm_tasks(runs(*nets("x"))) == {"": ["b=1", "b=2"]}


def test_nets_that_are_what_was_varied_are_one_task():
    assert arm_tasks(runs(*nets("x", "y", batches=(1,)))) == {"": ["x", "y"]}


def test_nothing_is_one_task():
    assert arm_tasks(runs(job()).filter(False)) == {"": []}
    assert arm_tasks(runs({}, state=["unreadable"])) == {"": []}


@pytest.fixture
def two_sets():
    jobs = [
        {"clients": 1, "model": {"name": net}, "batching": {"local_batch_size": b}, "data": {"path": f"/d/{path}.h5"}}
        for net, path in (("x", "cifar10"), ("y", "food101"))
        for b in (1, 2)
    ]
    return runs(*jobs, data_fingerprint=["aaaaaaaa"] * 2 + ["bbbbbbbb"] * 2)


def test_other_data_are_another_task_and_labels_name_the_net(two_sets):
    assert arm_tasks(two_sets) == {
        "x, cifar10": ["x, b=1", "x, b=2"],
        "y, food101": ["y, b=1", "y, b=2"],
    }
    assert data_titles(two_sets) == {"aaaaaaaa": "cifar10", "bbbbbbbb": "food101"}


def test_data_of_one_name_but_other_content():
    jobs = [{"clients": 1, "data": {"path": f"/{place}/set.h5"}} for place in "ab"]
    frame = runs(*jobs, data_fingerprint=["aaaaaaaa", "bbbbbbbb"])
    assert list(data_titles(frame).values()) == ["set", "set bbbbbb"]
    assert frame["arm"].to_list() == ["data set", "data set bbbbbb"]


def test_a_run_that_has_not_begun_has_the_data_of_its_path():
    jobs = [{"clients": 1, "seed": seed, "data": {"path": "/set.h5"}} for seed in (0, 1)]
    frame = runs(*jobs, data_fingerprint=["aaaaaaaa", None])
    assert frame["arm"].n_unique() == 1
    # Where files of that name had two contents nobody knows which one it will have.
    jobs += [{**jobs[0], "seed": 2}]
    assert runs(*jobs, data_fingerprint=["aaaaaaaa", None, "bbbbbbbb"])["arm"].n_unique() == 3


def test_many_tasks_of_one_arm_stand_together():
    """50 unlike runs are to be read in one table, not in fifty."""
    tasks = {"x": ["x, b=1", "x, b=2"], **{f"n{i}": [f"n{i}, b=1"] for i in range(MAX_ALONE)}}
    assert with_few_alone(tasks) == tasks
    found = with_few_alone({**tasks, "y": ["y, b=1"]})
    assert list(found) == ["x", ALONE]
    assert found[ALONE] == [*(f"n{i}, b=1" for i in range(MAX_ALONE)), "y, b=1"]
