"""Options of the gradient path in whole runs, against hand-written steps or direct computation."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.config.job import parse_job
from hpclbfl.core.errors import ConfigError
from hpclbfl.gradients.sample_noise import sample_factors
from hpclbfl.gradients.weight_noise import client_factors
from hpclbfl.runs.log.reader import read_run
from hpclbfl.training import setup
from hpclbfl.training.loop import begin_record
from hpclbfl.training.session import run_job
from hpclbfl.training.setup import make_state
from hpclbfl.training.state import TrainState
from tests.conftest import make_job

SIZES = [1, 7, 2, 6]
PLAIN = {"model": {"name": "vit_cifar"}, "optimizer": {"lr": 0.05}, "batching": {"local_batch_size": SIZES}}


def experiment(toy_set: Path, **sections: Any) -> TrainState:
    job = make_job(toy_set, **{**PLAIN, **sections})
    return make_state(job, LocalCommunicator())


def client_gradients(state: TrainState, at: list[list[Tensor]] | None = None) -> list[list[Tensor]]:
    """Each client's mean gradient over the batch of the coming step, at the model or at parameters of its own."""
    found = []
    parameters = state.mean.parameters
    for client in range(4):
        images, labels = state.train.batch(*state.sampler.take(client, state.counters.positions, state.sizes))
        values = dict(zip(dict(state.mean.module.named_parameters()), at[client] if at else parameters, strict=True))
        loss = nn.functional.cross_entropy(torch.func.functional_call(state.mean.module, values, images), labels)
        found.append(list(torch.autograd.grad(loss, list(values.values()))))
    return found


def take_step(state: TrainState) -> dict[str, Tensor]:
    record = begin_record(state)
    state.algorithm.step(state, record, 0)
    state.counters.positions += state.sampler.counts(state.sizes)
    state.counters.step += 1
    return record.columns


def test_extrapolated_steps_by_hand(toy_set: Path) -> None:
    """w <- w - lr sum (b_c / B) g_c(w - lr' g_c of the step before)."""
    state = experiment(toy_set, gradients={"extrapolation_lr": 0.3})
    last: list[list[Tensor]] | None = None
    for _ in range(3):
        before = [p.detach().clone() for p in state.mean.parameters]
        points = None
        if last is not None:
            points = [[(p - 0.3 * g).requires_grad_() for p, g in zip(before, own, strict=True)] for own in last]
        last = client_gradients(state, points)
        take_step(state)
        for k, parameter in enumerate(state.mean.parameters):
            gradient = sum(b / 16 * own[k] for b, own in zip(SIZES, last, strict=True))
            torch.testing.assert_close(parameter.detach(), before[k] - 0.05 * gradient, rtol=1e-9, atol=1e-12)


def test_noisy_weights_by_hand(toy_set: Path) -> None:
    state = experiment(toy_set, gradients={"weight_noise": 0.5})
    for step in range(2):
        before = [p.detach().clone() for p in state.mean.parameters]
        own = client_gradients(state)
        factors = client_factors(np.array(SIZES), 0.5, 0, step)
        take_step(state)
        for k, parameter in enumerate(state.mean.parameters):
            gradient = sum(f * b / 16 * g[k] for f, b, g in zip(factors, SIZES, own, strict=True))
            torch.testing.assert_close(parameter.detach(), before[k] - 0.05 * gradient, rtol=1e-9, atol=1e-12)


def test_noise_scale_and_layers_in_the_log(tmp_path: Path, toy_set: Path) -> None:
    options = {"noise_scale": {"decay": 0.0}, "layers_every": 2}
    state = experiment(toy_set, gradients=options)
    own = client_gradients(state)
    run_job(make_job(toy_set, **PLAIN, gradients=options, stop={"steps": 3}), tmp_path)
    tables = read_run(tmp_path).tables
    row = tables["steps"][:4]
    norms = [sum(g.square().sum().item() for g in gradients) for gradients in own]
    np.testing.assert_allclose(row["local_grad_sq_norm"], norms, rtol=1e-9)
    total = sum(
        sum(b / 16 * g[k] for b, g in zip(SIZES, own, strict=True)).square().sum().item() for k in range(len(own[0]))
    )
    np.testing.assert_allclose(row["grad_sq_norm"], total, rtol=1e-9)
    local = sum(b / 16 * n for b, n in zip(SIZES, norms, strict=True))
    np.testing.assert_allclose(row["tr_sigma"], (local - total) * 16 / 3, rtol=1e-9)
    np.testing.assert_allclose(row["true_grad_sq_norm"], (4 * total - local) / 3, rtol=1e-9)
    np.testing.assert_allclose(row["b_simple"], row["tr_sigma"] / row["true_grad_sq_norm"], rtol=1e-9)
    layers = tables["layers"]
    assert sorted(set(layers["step"])) == [0, 2]
    names = [name.encode() for name, _ in state.mean.module.named_parameters()]
    assert layers["layer"][layers["step"] == 0].tolist() == names
    assert layers["grad_sq_norm"][layers["step"] == 0].sum() == pytest.approx(total, rel=1e-9)


def test_clipping_bounds_the_update_and_not_the_log(toy_set: Path) -> None:
    free = experiment(toy_set)
    norm = take_step(free)["grad_sq_norm"].item() ** 0.5
    state = experiment(toy_set, gradients={"clip_norm": norm / 4})
    before = [p.detach().clone() for p in state.mean.parameters]
    assert take_step(state)["grad_sq_norm"].item() ** 0.5 == pytest.approx(norm)
    moved = sum((p.detach() - b).square().sum().item() for p, b in zip(state.mean.parameters, before, strict=True))
    assert moved**0.5 == pytest.approx(0.05 * norm / 4, rel=1e-6)


def test_half_precision_reduction_trains(tmp_path: Path, toy_set: Path) -> None:
    few = {"stop": {"steps": 4}, "precision": "float32"}
    for name in ("none", "fp16"):
        run_job(make_job(toy_set, **few, gradients={"compression": name}), tmp_path / name)
    plain, half = (read_run(tmp_path / name).tables["steps"]["loss"] for name in ("none", "fp16"))
    assert plain[:4].tolist() == half[:4].tolist()
    assert (plain != half).any()
    np.testing.assert_allclose(half, plain, rtol=0.02)


@pytest.mark.parametrize(
    ("sections", "error"),
    [
        (
            {"sync": {"kind": "fedavg", "local_steps": 2}, "gradients": {"weight_noise": 0.1}},
            "gradients.weight_noise: for gradients that are summed over clients, under sync bsp and post_local",
        ),
        ({"sync": {"kind": "selsync"}, "gradients": {"measure": False}}, "needs 'gradients.measure: true'"),
        (
            {"sync": {"kind": "selsync"}, "gradients": {"scaler": {"factor": 2.0}}},
            "sync.change and gradients.scaler.change must agree",
        ),
        ({"gradients": {"noise_scale": {}, "weight_noise": 0.1}}, "cannot be measured under 'weight_noise'"),
        ({"gradients": {"measure": False, "clip_norm": 1.0}}, "'measure: false' leaves"),
        ({"gradients": {"sample_noise": 0.1, "noise_scale": {}}}, "'noise_scale' does not go with 'sample_noise'"),
        ({"gradients": {"sample_noise": 0.1, "weight_noise": 0.1}}, "'weight_noise' does not go with 'sample_noise'"),
        ({"gradients": {"extrapolation_lr": 0.1}, "precision": "fp16"}, "does not go with precision fp16"),
    ],
)
def test_options_that_do_not_fit(toy_set: Path, sections: dict[str, Any], error: str) -> None:
    values = {"data": {"name": "packed", "path": str(toy_set)}, "model": {"name": "resnet8"}, **sections}
    with pytest.raises(ConfigError, match=error):
        parse_job(values, "job.yaml")


def test_loss_scaling_leaves_the_noise_scale_alone(
    tmp_path: Path, toy_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for precision in ("float32", "fp16"):
        if precision == "fp16":
            # The scaling without the half precision, which a CPU does not have.
            monkeypatch.setattr(setup, "autocast_of", lambda precision, on: nullcontext)
        job = make_job(toy_set, precision=precision, gradients={"noise_scale": {}}, stop={"steps": 4})
        run_job(job, tmp_path / precision)
        found[precision] = read_run(tmp_path / precision).tables["steps"]
    for column in ("loss", "grad_sq_norm", "local_grad_sq_norm", "tr_sigma", "true_grad_sq_norm", "b_simple"):
        np.testing.assert_allclose(found["fp16"][column], found["float32"][column], rtol=1e-4, err_msg=column)


@pytest.mark.parametrize("sync", [{"kind": "bsp"}, {"kind": "fedavg", "local_steps": 2}])
def test_noisy_samples_by_hand(toy_set: Path, sync: dict[str, Any]) -> None:
    """w <- w - lr sum of (1 + s xi_i) g_i / B, or / b_c of a client that trains alone; the logged loss has no noise."""
    state = experiment(toy_set, gradients={"sample_noise": 0.5}, sync=sync, clients=1, batching={"local_batch_size": 6})
    for step in range(2):
        images, labels = state.train.batch(*state.sampler.take(0, state.counters.positions, state.sizes))
        net = state.clients[0].replica.module
        before = [p.detach().clone() for p in net.parameters()]
        each = nn.functional.cross_entropy(net(images), labels, reduction="none")
        weighed = (torch.from_numpy(sample_factors(6, 0.5, 0, step, 0)) * each).mean()
        gradients = torch.autograd.grad(weighed, list(net.parameters()))
        record = begin_record(state)
        state.algorithm.step(state, record, 0)
        state.counters.positions += state.sampler.counts(state.sizes)
        state.counters.step += 1
        assert record.clients[0].columns["loss"].item() == pytest.approx(each.mean().item())
        for parameter, old, gradient in zip(net.parameters(), before, gradients, strict=True):
            torch.testing.assert_close(parameter.detach(), old - 0.05 * gradient, rtol=1e-9, atol=1e-12)


def test_samples_factors_have_the_moments_that_make_the_noise_of_a_smaller_batch() -> None:
    """b / b_small - 1 = s^2: a batch of 8 with s^2 = 3 is as noisy as one of 2."""
    factors = np.array([sample_factors(8, 3**0.5, 0, step, 2) for step in range(4000)])
    np.testing.assert_allclose(factors.sum(1), 8)
    assert ((factors - 1) ** 2).mean() == pytest.approx(3, rel=0.02)
    assert sample_factors(1, 2.0, 0, 0, 0).tolist() == [1.0]
    assert (sample_factors(8, 1.0, 0, 3, 2) == sample_factors(8, 1.0, 0, 3, 2)).all()
    assert (sample_factors(8, 1.0, 0, 3, 2) != sample_factors(8, 1.0, 0, 3, 1)).all()
