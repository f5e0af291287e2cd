"""Whole runs in one process, without MPI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.core.errors import ConfigError
from hpclbfl.data.sampling import ShardSampler
from hpclbfl.runs.log.reader import RunLogs, read_run
from hpclbfl.training.loop import begin_record
from hpclbfl.training.session import run_job
from hpclbfl.training.setup import make_state
from tests.conftest import make_job

FAST = {"precision": "float32", "batching": {"local_batch_size": 8}, "evaluate": {"every_steps": 1000}}


def run(folder: Path, toy_set: Path, **sections: Any) -> RunLogs:
    outcome = run_job(make_job(toy_set, **{**FAST, **sections}), folder)
    logs = read_run(folder)
    assert logs.done is not None and logs.done["reason"] == outcome.reason
    return logs


@pytest.mark.parametrize(
    ("stop", "steps"),
    [
        ({"steps": 3}, 3),
        # B = 32 of 96 samples: 3 steps per epoch.
        ({"epochs": 2}, 6),
        ({"epochs": 1.1}, 4),
        ({"samples": 100}, 4),
        ({"steps": 5, "epochs": 1}, 3),
    ],
)
def test_stop_conditions(tmp_path: Path, toy_set: Path, stop: dict[str, Any], steps: int) -> None:
    logs = run(tmp_path, toy_set, stop=stop)
    assert logs.tables["steps"]["step"].max() == steps - 1
    assert logs.done is not None and logs.done["step"] == steps


@pytest.mark.parametrize("sync", [{"kind": "bsp"}, {"kind": "fedavg", "local_steps": 4}])
def test_stop_by_time(tmp_path: Path, toy_set: Path, sync: dict[str, Any]) -> None:
    logs = run(tmp_path, toy_set, sync=sync, stop={"seconds": 0.5, "steps": 100_000})
    assert logs.done is not None and logs.done["reason"] == "seconds"
    assert 0.5 <= logs.done["elapsed_s"] < 30


def test_stop_by_accuracy_learns_the_toy_task(tmp_path: Path, toy_set: Path) -> None:
    # Without flips, which turn one quarter into another.
    data = {"name": "packed", "path": str(toy_set)}
    stop, evaluate = {"top1": 0.9, "epochs": 60}, {"every_epochs": 2}
    logs = run(tmp_path, toy_set, data=data, stop=stop, evaluate=evaluate, optimizer={"lr": 0.1})
    assert logs.done is not None and logs.done["reason"] == "top1"
    assert logs.tables["evals"]["top1"][-1] >= 0.9


def test_evaluations_come_when_asked_and_at_the_end(tmp_path: Path, toy_set: Path) -> None:
    logs = run(tmp_path, toy_set, stop={"steps": 8}, evaluate={"every_epochs": 1, "splits": ["test", "train"]})
    evals = logs.tables["evals"]
    assert evals["step"].tolist() == [2, 2, 5, 5, 7, 7]
    assert evals["split"].tolist() == [b"test", b"train"] * 3
    assert (evals["top5"] == 1).all()  # of four classes


def test_local_steps_leave_buffers_averaged_and_the_model_saved(tmp_path: Path, toy_set: Path) -> None:
    logs = run(
        tmp_path, toy_set, stop={"steps": 4}, sync={"kind": "fedavg", "local_steps": 2, "optimizer_state": "reset"}
    )
    assert logs.tables["steps"]["round"].tolist() == [0] * 8 + [1] * 8
    state = torch.load(tmp_path / "model.pt")
    assert (state["bn1.running_mean"] != 0).any()
    assert logs.provenance["engine"] == "local"


@pytest.mark.parametrize(
    "sync",
    [
        {"kind": "bsp"},
        {"kind": "fedavg", "local_steps": 2},
        {"kind": "fedavg", "local_steps": 100},
        {"kind": "post_local", "switch_step": 2, "local_steps": 2},
        {"kind": "selsync"},
    ],
    ids=lambda sync: sync["kind"],
)
@pytest.mark.parametrize("partition", [{"kind": "iid"}, {"kind": "dirichlet", "alpha": 0.01}], ids=["iid", "empty"])
def test_the_saved_model_counts_the_steps_of_its_batch_norms(
    tmp_path: Path, toy_set: Path, sync: dict[str, Any], partition: dict[str, Any]
) -> None:
    """Clients without samples have taken none; the average has the largest count."""
    run(tmp_path, toy_set, stop={"steps": 5}, sync=sync, partition=partition, clients=11)
    state = torch.load(tmp_path / "model.pt")
    counts = {int(value) for key, value in state.items() if key.endswith("num_batches_tracked")}
    assert counts == {5}


def test_clients_take_over_the_count_with_the_average(toy_set: Path) -> None:
    """A slow client took one of four steps; a cumulative BatchNorm would weigh its next batch as the second."""
    state = make_state(make_job(toy_set, sync={"kind": "fedavg", "local_steps": 4}), LocalCommunicator())
    for client, steps in zip(state.clients, (4, 1, 3, 0), strict=True):
        client.replica.set_counts(torch.full_like(client.replica.counts, steps))
    state.counters.positions += 4
    state.replicas.average_clients(state, begin_record(state))
    for client in state.clients:
        assert set(client.replica.counts.tolist()) == {4}


@pytest.mark.parametrize(
    ("weights", "expected"),
    # Of 2, 4, 8 and 16 samples processed since the last averaging, of shards of 40, 30, 20 and 6.
    [
        ("samples", (2 * 1 + 4 * 2 + 8 * 3 + 16 * 4) / 30),
        ("shards", (40 * 1 + 30 * 2 + 20 * 3 + 6 * 4) / 96),
        ("uniform", (1 + 2 + 3 + 4) / 4),
    ],
)
@pytest.mark.parametrize(
    "sync",
    [
        {"kind": "fedavg", "local_steps": 100},
        {"kind": "selsync"},
        {"kind": "post_local", "switch_step": 1, "local_steps": 100},
    ],
    ids=lambda sync: sync["kind"],
)
def test_weights_of_averagings_and_of_evaluations_between_them(
    toy_set: Path, sync: dict[str, Any], weights: str, expected: float
) -> None:
    state = make_state(make_job(toy_set, sync={**sync, "weights": weights}), LocalCommunicator())
    state.sampler = ShardSampler([np.arange(size) for size in (40, 30, 20, 6)], seed=0)
    if sync["kind"] == "post_local":
        state.counters.positions += 7
        state.start_local_training()
    state.counters.positions += [2, 4, 8, 16]
    for client in state.clients:
        client.replica.state.fill_(client.id + 1)
    state.average_replicas()
    torch.testing.assert_close(state.mean.state, torch.full_like(state.mean.state, expected))
    state.replicas.average_clients(state, begin_record(state))
    for client in state.clients:
        torch.testing.assert_close(client.replica.state, state.mean.state)
    # Just averaged: an evaluation sees the same.
    state.mean.state.zero_()
    state.average_replicas()
    assert torch.equal(state.mean.state, state.clients[0].replica.state)


def test_learning_rate_follows_the_schedule(tmp_path: Path, toy_set: Path) -> None:
    schedule = {"kind": "multistep", "milestones_epochs": [1], "gamma": 0.1}
    logs = run(tmp_path, toy_set, stop={"steps": 5}, schedule=schedule, clients=1)
    # B = 8 of 96: the epoch ends after 12 steps; with 4 clients after 3.
    assert set(logs.tables["steps"]["lr"]) == {0.02}
    logs = run(tmp_path / "four", toy_set, stop={"steps": 5}, schedule=schedule)
    np.testing.assert_allclose(np.unique(logs.tables["steps"]["lr"]), [0.002, 0.02])
    assert logs.tables["steps"]["lr"][11] == 0.02 and logs.tables["steps"]["lr"][12] == pytest.approx(0.002)


def test_a_second_run_of_the_folder_is_left_alone_or_sets_the_first_aside(tmp_path: Path, toy_set: Path) -> None:
    first = run(tmp_path, toy_set, stop={"steps": 3})
    done = run(tmp_path, toy_set, stop={"steps": 3})
    assert done.num_attempts == 1, "a run that is done is left alone"
    run_job(make_job(toy_set, **{**FAST, "stop": {"steps": 3}}), tmp_path, resume="never")
    second = read_run(tmp_path)
    aside = read_run(tmp_path / "earlier" / "000")
    assert (second.num_attempts, aside.num_attempts) == (1, 1)
    for logs in (second, aside):
        assert logs.tables["steps"]["loss"].tolist() == first.tables["steps"]["loss"].tolist()


def test_seeds_differ(tmp_path: Path, toy_set: Path) -> None:
    losses = [run(tmp_path / str(s), toy_set, seed=s, stop={"steps": 2}).tables["steps"]["loss"] for s in (0, 1)]
    assert (losses[0] != losses[1]).all()


def test_bf16_autocast_trains(tmp_path: Path, toy_set: Path) -> None:
    logs = run(tmp_path, toy_set, precision="bf16", stop={"steps": 3})
    assert np.isfinite(logs.tables["steps"]["loss"]).all()


def test_a_single_sample_is_refused_where_batchnorm_cannot_take_it(
    tmp_path: Path, toy_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(tmp_path, toy_set, model={"name": "resnet18"}, batching={"local_batch_size": 1})
    assert end.value.code == ConfigError.exit_code
    assert "batching: this net's BatchNorm needs at least 2 samples" in capsys.readouterr().err
    # resnet8 keeps 2 x 2 values per channel at 8 px.
    run(tmp_path, toy_set, batching={"local_batch_size": 1}, stop={"steps": 2})


def test_fp16_needs_a_gpu(tmp_path: Path, toy_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SystemExit) as end:
        run(tmp_path, toy_set, precision="fp16")
    assert end.value.code == ConfigError.exit_code
    assert "precision: fp16 needs a GPU" in capsys.readouterr().err
