"""A loss that counts its terms: what a step divides by, and what does not go with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.config.job import JobConfig, load_job
from hpclbfl.core.errors import ConfigError
from hpclbfl.runs.log.reader import read_run
from hpclbfl.training.session import run_job
from hpclbfl.training.setup import make_state

PARTS = """
import numpy as np, torch
from hpclbfl.data.examples import Examples

class Marks:
    # 24 samples of 4 numbers, of which 0 to 3 count; every sixth has none.
    def __init__(self, config):
        rng = np.random.default_rng(5)
        x = rng.normal(size=(24, 4, 3))
        y = rng.integers(0, 3, (24, 4))
        y[np.arange(4) >= (np.arange(24) % 6 % 4)[:, None]] = -1
        self.train = Examples(x, y, groups=np.arange(24) // 6)
        self.test = Examples(x[:7], y[:7])

class Net(torch.nn.Module):
    def __init__(self, config, data):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)
    def forward(self, x):
        return self.layer(x).transpose(1, 2)

class Plain:
    def __init__(self, config, data): ...
    def __call__(self, scores, y):
        return torch.nn.functional.cross_entropy(scores, y, ignore_index=-1, reduction="sum")

class Samples(Plain):
    def count(self, y):
        return len(y)

class Marked(Plain):
    def count(self, y):
        return int((y >= 0).sum())
"""


def job_of(tmp_path: Path, counting: str, **sections: Any) -> JobConfig:
    (tmp_path / "parts.py").write_text(PARTS)
    values = {
        "clients": 4,
        "precision": "float64",
        "data": {"name": "parts.py:Marks"},
        "model": {"name": "parts.py:Net"},
        "loss": {"name": f"parts.py:{counting}"},
        "optimizer": {"lr": 0.3, "momentum": 0.9},
        "partition": {"kind": "iid", "reshuffle": True},
        "batching": {"local_batch_size": [1, 2, 3, 2]},
        "stop": {"steps": 6},
        "evaluate": {"every_steps": 6},
        **sections,
    }
    (tmp_path / "job.yaml").write_text(json.dumps(values))
    return load_job(tmp_path / "job.yaml")


def trained(tmp_path: Path, name: str, *args: Any, **sections: Any) -> dict[str, torch.Tensor]:
    run_job(job_of(tmp_path, *args, **sections), tmp_path / name)
    found: dict[str, torch.Tensor] = torch.load(tmp_path / name / "model.pt")
    return found


def test_unequal_batches_equal_one_large_batch(tmp_path: Path) -> None:
    split = trained(tmp_path, "split", "Marked")
    whole = trained(tmp_path, "whole", "Marked", clients=1, batching={"local_batch_size": 8})
    for key, value in whole.items():
        np.testing.assert_allclose(split[key], value, rtol=1e-12, atol=1e-14)
    # Divided by samples it would be another training.
    assert not np.allclose(trained(tmp_path, "plain", "Plain")["layer.weight"], whole["layer.weight"], rtol=1e-3)


def test_the_first_step_by_hand(tmp_path: Path) -> None:
    state = make_state(job_of(tmp_path, "Marked", stop={"steps": 1}), LocalCommunicator())
    module = state.mean.module
    samples = np.concatenate([state.sampler.take(c, np.zeros(4, np.int64), (1, 2, 3, 2))[0] for c in range(4)])
    x, y = state.train.batch(samples, np.zeros_like(samples))
    loss = torch.nn.functional.cross_entropy(module(x), y, ignore_index=-1)
    (gradient,) = torch.autograd.grad(loss, [module.layer.weight])
    expected = module.layer.weight.detach() - 0.3 * gradient
    found = trained(tmp_path, "run", "Marked", stop={"steps": 1})["layer.weight"]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("sync", [{"kind": "bsp"}, {"kind": "fedavg", "local_steps": 2}])
def test_a_count_of_samples_changes_no_bit(tmp_path: Path, sync: dict[str, Any]) -> None:
    plain, counted = (trained(tmp_path, name, name, sync=sync) for name in ("Plain", "Samples"))
    assert all(torch.equal(counted[key], value) for key, value in plain.items())


def test_a_client_that_trains_alone_divides_by_its_own_count(tmp_path: Path) -> None:
    sections = {"clients": 1, "batching": {"local_batch_size": 5}}
    shared = trained(tmp_path, "shared", "Marked", **sections)
    alone = trained(tmp_path, "alone", "Marked", sync={"kind": "fedavg", "local_steps": 3}, **sections)
    for key, value in shared.items():
        np.testing.assert_allclose(alone[key], value, rtol=1e-12)


@pytest.mark.parametrize("sync", [{"kind": "bsp"}, {"kind": "fedavg", "local_steps": 2}])
def test_batches_without_a_term_move_nothing(tmp_path: Path, sync: dict[str, Any]) -> None:
    text = PARTS.replace("(np.arange(24) % 6 % 4)", "np.where(np.arange(24) < 18, 0, 3)")
    sections = {"sync": sync, "partition": {"kind": "natural"}, "evaluate": {"every_steps": 1}}
    job_of(tmp_path, "Marked", **sections)
    (tmp_path / "parts.py").write_text(text)
    run_job(load_job(tmp_path / "job.yaml"), tmp_path / "run")
    table = read_run(tmp_path / "run").tables["steps"]
    assert set(table["loss"][table["client"] < 3]) == {0.0} and (table["loss"][table["client"] == 3] > 0).all()
    # Nothing of the test split counts: its loss is not known.
    assert np.isnan(read_run(tmp_path / "run").tables["evals"]["loss"]).all()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"gradients": {"noise_scale": {}}},
            "gradients.noise_scale: takes every sample for one term of the loss, which parts.py:Marked counts "
            "otherwise: leave it out",
        ),
        (
            {"gradients": {"weight_noise": 0.5}},
            "gradients.weight_noise: takes every sample for one term of the loss, which parts.py:Marked counts "
            "otherwise: leave it out",
        ),
        (
            {"stop": {"steps": 3, "top1": 0.5}},
            "stop.top1: these samples have no classes that could be right; end the run otherwise",
        ),
        (
            {"model": {"name": "resnet8"}},
            "model.name: resnet8 takes images, floating point [3, height, width]; these samples are floating point "
            "[4, 3]: give a net of your own",
        ),
        (
            {"partition": {"kind": "labels_per_client", "labels": 1}},
            "partition.kind: labels_per_client deals by labels, these samples have none",
        ),
        ({"loss": {"name": "mse"}}, "loss.name: mse needs targets of floating point; these are whole numbers"),
    ],
)
def test_what_does_not_go_with_these_data_is_refused(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_state(job_of(tmp_path, "Marked", **sections), LocalCommunicator())
    assert str(error.value) == message
