"""Which state of a run is looked at, and that replicas are averaged as an evaluation would average them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.config.job import load_job
from hpclbfl.core.errors import ConfigError, DataError
from hpclbfl.models import DataSpec
from hpclbfl.models.initial import initial_net
from hpclbfl.runs.checkpoint import CheckpointStore
from hpclbfl.sharpness.model import load_state
from hpclbfl.sharpness.source import find_source
from hpclbfl.training.saving import resume
from hpclbfl.training.session import run_job
from hpclbfl.training.setup import make_state
from tests.conftest import make_job

FEW: dict[str, Any] = {
    "stop": {"steps": 10},
    "evaluate": {"every_steps": 5},
    "checkpoint": {"every_steps": 3},
    "batching": {"local_batch_size": [2, 3, 4, 7]},
}


def unfinished(run: Path) -> Path:
    """As if the run had been killed after the checkpoint of step 9."""
    (run / "DONE.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step-000000010", ignore_errors=True)
    return run


def state_of(run: Path) -> tuple[dict[str, torch.Tensor], int, list[str]]:
    source, comm = find_source(run), LocalCommunicator()
    job = load_job(source.folder.config)
    net = initial_net(job.model, DataSpec((3, 8, 8), 4), job.seed, torch.device("cpu"), torch.float64)
    shards = make_state(job, comm).sampler.capacity
    net, step, problems = load_state(net, source, job, shards, comm)
    return dict(net.state_dict()), step, problems


@pytest.mark.parametrize(
    "sync",
    [
        {"kind": "bsp"},
        {"kind": "fedavg", "local_steps": 4},
        {"kind": "fedavg", "local_steps": 4, "weights": "uniform"},
        {"kind": "fedavg", "local_steps": 4, "weights": "shards"},
        {"kind": "fedavg", "local_steps": 3},
        {"kind": "post_local", "switch_step": 5, "local_steps": 3},
    ],
    ids=["shared", "one step after an averaging", "uniform", "shards", "just averaged", "post-local"],
)
def test_a_checkpoint_is_averaged_as_for_an_evaluation(tmp_path: Path, toy_set: Path, sync: dict[str, Any]) -> None:
    job = make_job(toy_set, sync=sync, partition={"kind": "quantity", "alpha": 0.5}, **FEW)
    run_job(job, tmp_path)
    saved, step, problems = state_of(unfinished(tmp_path))
    assert (step, problems) == (9, [])
    state = make_state(job, LocalCommunicator())
    resume(state, CheckpointStore(tmp_path / "checkpoints", state.comm))
    state.average_replicas()
    for name, expected in state.mean.module.state_dict().items():
        if not expected.is_floating_point():
            assert torch.equal(saved[name], expected.cpu()) and int(expected) == 9, name
        else:
            torch.testing.assert_close(saved[name], expected.cpu(), atol=1e-14, rtol=1e-12, msg=name)


def test_a_finished_run_has_its_last_state(tmp_path: Path, toy_set: Path) -> None:
    run_job(make_job(toy_set, sync={"kind": "fedavg", "local_steps": 4}, **FEW), tmp_path)
    state, step, _ = state_of(tmp_path)
    assert step == 10
    assert all(torch.equal(state[name], value) for name, value in torch.load(tmp_path / "model.pt").items())


def test_damage_is_named(tmp_path: Path, toy_set: Path) -> None:
    run_job(make_job(toy_set, **FEW), tmp_path)
    (tmp_path / "model.pt").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"model\.pt: is damaged: its content does not match its checksum"):
        state_of(tmp_path)
    (tmp_path / "DONE.json").unlink()
    (tmp_path / "checkpoints" / "step-000000010" / "client-00002.pt").unlink()
    _, step, problems = state_of(tmp_path)
    assert step == 9
    assert "step-000000010" in problems[0]
    (tmp_path / "checkpoints" / "step-000000009" / "MANIFEST.json").unlink()
    with pytest.raises(ConfigError, match=r"holds no checkpoint that can be read.*step-000000010"):
        state_of(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("is_older", [False, True], ids=["with a checksum", "of an older version"])
def test_no_damage_to_the_model_gives_another_net(tmp_path: Path, toy_set: Path, is_older: bool) -> None:
    run_job(make_job(toy_set, **FEW), tmp_path)
    if is_older:
        done = json.loads((tmp_path / "DONE.json").read_text())
        del done["files"], done["checksum"]
        (tmp_path / "DONE.json").write_text(json.dumps(done))
    whole = (tmp_path / "model.pt").read_bytes()
    expected, _, _ = state_of(tmp_path)
    read = 0
    for place in range(0, len(whole), len(whole) // 97):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (tmp_path / "model.pt").write_bytes(damaged)
        try:
            state, _, _ = state_of(tmp_path)
        except DataError:
            continue
        # Between an archive's entries lies padding that nothing reads.
        assert is_older and all(torch.equal(state[name], value) for name, value in expected.items())
        read += 1
    assert read < 30


def test_no_state_is_one_line(tmp_path: Path, toy_set: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run folder: it has no config\.yaml"):
        find_source(tmp_path)
    (tmp_path / "config.yaml").write_text(make_job(toy_set).to_yaml())
    with pytest.raises(ConfigError, match="holds no checkpoint and no finished model"):
        find_source(tmp_path)
    # A checkpoint that was being written is none.
    (tmp_path / "checkpoints" / ".step-000000003").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        find_source(tmp_path)


def test_a_checkpoint_of_another_experiment_is_refused(tmp_path: Path, toy_set: Path) -> None:
    run_job(make_job(toy_set, **FEW), tmp_path / "a")
    other = make_job(toy_set, sync={"kind": "fedavg", "local_steps": 4}, **{**FEW, "stop": {"steps": 4}})
    run_job(other, tmp_path / "b")
    name = "step-000000009"
    shutil.copytree(tmp_path / "a" / "checkpoints" / name, tmp_path / "b" / "checkpoints" / name)
    with pytest.raises(ConfigError, match="step 9 is another experiment's, its sync differs"):
        state_of(unfinished(tmp_path / "b"))
