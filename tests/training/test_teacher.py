"""The teacher in whole runs: steps by hand, what is measured and logged, and what is refused."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpclbfl.comm.local import LocalCommunicator
from hpclbfl.config.job import JobConfig, parse_job
from hpclbfl.core.errors import ConfigError
from hpclbfl.gradients import Context, NoiseAverages
from hpclbfl.gradients.change import unknown
from hpclbfl.gradients.gradient import Gradient, Layout
from hpclbfl.gradients.learning import ClientGradients
from hpclbfl.runs.log.reader import RunLogs, read_run
from hpclbfl.training import setup
from hpclbfl.training.loop import begin_record
from hpclbfl.training.session import run_job
from hpclbfl.training.setup import make_state
from hpclbfl.training.state import TrainState
from tests.conftest import make_job
from tests.gradients.teacher.worked import taught
from tests.training.test_gradient_options import client_gradients, take_step

SIZES = [3, 7, 4, 6]
RESIDUAL = {"kind": "residual", "small_batch": 2}
PLAIN = {"model": {"name": "vit_cifar"}, "optimizer": {"lr": 0.05}, "batching": {"local_batch_size": SIZES}}
FEDAVG = {"kind": "fedavg", "local_steps": 3}


def experiment(toy_set: Path, teacher: dict[str, Any], **sections: Any) -> TrainState:
    job = make_job(toy_set, **{**PLAIN, "gradients": {"teacher": teacher}, **sections})
    return make_state(job, LocalCommunicator())


def found_in(state: TrainState) -> tuple[Layout, ClientGradients, list[Tensor]]:
    """What the clients' gradients of the coming step are, taken one by one."""
    layout = Layout.of(state.mean.module.named_parameters())
    own = client_gradients(state)
    flats = [Gradient(gradients, layout).flat for gradients in own]
    mean = sum(b / sum(SIZES) * flat for b, flat in zip(SIZES, flats, strict=True))
    assert isinstance(mean, Tensor)
    found = ClientGradients(dict(enumerate(own)), np.array(SIZES), Gradient(mean, layout), lambda tensor: None)
    return layout, found, flats


def flat_of(parameters: list[nn.Parameter], layout: Layout) -> Tensor:
    return Gradient([p.detach().clone() for p in parameters], layout).flat


def test_a_shared_step_by_hand(toy_set: Path) -> None:
    """w <- w - lr (G + noise): of the residuals of this step, with its trace, and B = 20."""
    state = experiment(toy_set, RESIDUAL)
    layout, found, flats = found_in(state)
    before = flat_of(state.mean.parameters, layout)
    teacher, learnt, told = taught(layout, found, **RESIDUAL)
    local = sum(b / 20 * flat.square().sum() for b, flat in zip(SIZES, flats, strict=True))
    trace = (local - found.mean.sq_norm) * 20 / 3
    context = Context(0, 0, noise=NoiseAverages(trace, trace), batch_size=20)
    gradient, metrics = teacher.apply(found.mean, learnt, context, unknown())
    record = begin_record(state)
    state.algorithm.step(state, record, 0)
    torch.testing.assert_close(
        flat_of(state.mean.parameters, layout), before - 0.05 * gradient.flat, rtol=1e-7, atol=1e-10
    )
    assert record.columns["tr_sigma"].item() == pytest.approx(trace.item())
    assert record.columns["grad_sq_norm"].item() == pytest.approx(found.mean.sq_norm.item())
    for name, value in (metrics | told).items():
        assert record.columns[name].item() == pytest.approx(value.item(), rel=1e-6)
    assert metrics["teacher noise"] > 0


def test_a_local_step_by_hand(toy_set: Path) -> None:
    """Each client adds noise of its own, with c^2 = 1 / b_small - 1 / b_c, from what all of them have learnt."""
    state = experiment(toy_set, RESIDUAL, sync=FEDAVG)
    layout, found, flats = found_in(state)
    before = flat_of(state.mean.parameters, layout)
    teacher, learnt, _ = taught(layout, found, **RESIDUAL)
    state.algorithm.step(state, begin_record(state), 0)
    noises = []
    for client, size in enumerate(SIZES):
        context = Context(0, 0, client, batch_size=size)
        gradient, _ = teacher.apply(Gradient(flats[client], layout), learnt, context, unknown())
        after = flat_of(state.replicas.clients[client].replica.parameters, layout)
        torch.testing.assert_close(after, before - 0.05 * gradient.flat, rtol=1e-7, atol=1e-10)
        noises.append(gradient.flat - flats[client])
    assert all(noise.norm() > 0 for noise in noises) and not torch.allclose(noises[0], noises[1])


def steps_with(run: RunLogs, name: str) -> list[int]:
    rows = run.tables["metrics"]
    return sorted({int(step) for step in rows["step"][rows["name"] == name.encode()]})


@pytest.mark.parametrize(
    ("sync", "teacher", "steps"),
    [
        ({"kind": "bsp"}, {"every": 5}, [0, 1, 5, 6, 10, 11]),
        ({"kind": "bsp"}, {"every": 6, "train_steps": 1, "start_step": 3}, [3, 9]),
        (FEDAVG, {"every": 5}, [0, 3, 6, 9]),
        ({**FEDAVG, "kind": "post_local", "switch_step": 4}, {"every": 5}, [0, 1, 7, 10]),
    ],
)
def test_when_it_is_trained(
    tmp_path: Path, toy_set: Path, sync: dict[str, Any], teacher: dict[str, Any], steps: list[int]
) -> None:
    """While clients train alone: in the first steps of rounds, in which all are at the same weights."""
    job = make_job(toy_set, sync=sync, gradients={"teacher": {**RESIDUAL, **teacher}}, stop={"steps": 12})
    run_job(job, tmp_path)
    run = read_run(tmp_path)
    assert steps_with(run, "teacher energy") == steps == steps_with(run, "teacher seconds")
    # The first training step has no teacher that could be tested.
    assert steps_with(run, "teacher error") == steps[1:]
    assert steps_with(run, "teacher noise") == list(range(steps[0], 12))


def test_what_is_measured_is_the_gradient_without_noise_and_the_clip_sees_the_noise(
    tmp_path: Path, toy_set: Path
) -> None:
    gradients = {"teacher": RESIDUAL, "scaler": {"factor": 2.0, "threshold": 0.1}, "clip_norm": 0.25}
    optimizer = {"lr": 0.02}
    run_job(make_job(toy_set, gradients={}, optimizer=optimizer, stop={"steps": 1}), tmp_path / "plain")
    run_job(make_job(toy_set, gradients=gradients, optimizer=optimizer, stop={"steps": 6}), tmp_path / "taught")
    plain, run = (read_run(tmp_path / name) for name in ("plain", "taught"))
    rows = run.tables["steps"]
    norms = rows["grad_sq_norm"][::4]
    assert norms[0] == plain.tables["steps"]["grad_sq_norm"][0]
    np.testing.assert_allclose(rows["grad_change"][4::4], np.abs(np.diff(norms)) / norms[:-1])
    assert (rows["scale"][4::4] == 2.0).any()
    events = [bytes(text).decode() for kind, text in run.tables["events"][["kind", "text"]] if kind == b"chain"]
    assert events == ["the gradient passes through teacher, clip, scaler, in this order"]
    assert run.provenance["gradient_chain"] == ["teacher", "clip", "scaler"]
    # The norm of what is stepped with is that of the clip, although noise came in.
    state = make_state(
        make_job(toy_set, gradients={"teacher": RESIDUAL, "clip_norm": 0.25}, optimizer=optimizer), LocalCommunicator()
    )
    before = [p.detach().clone() for p in state.mean.parameters]
    columns = take_step(state)
    moved = sum((p.detach() - b).square().sum().item() for p, b in zip(state.mean.parameters, before, strict=True))
    assert moved**0.5 == pytest.approx(0.02 * 0.25, rel=1e-6)
    assert columns["teacher noise"] > 0


def test_the_order_that_a_job_states_is_kept(tmp_path: Path, toy_set: Path) -> None:
    gradients = {"teacher": RESIDUAL, "clip_norm": 1.0, "chain": ["clip", "teacher"]}
    run_job(make_job(toy_set, gradients=gradients, stop={"steps": 2}), tmp_path)
    assert read_run(tmp_path).provenance["gradient_chain"] == ["clip", "teacher"]


def test_loss_scaling_leaves_the_teacher_alone(tmp_path: Path, toy_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for precision in ("float32", "fp16"):
        if precision == "fp16":
            # The scaling without the half precision, which a CPU does not have.
            monkeypatch.setattr(setup, "autocast_of", lambda precision, on: nullcontext)
        job = make_job(toy_set, precision=precision, gradients={"teacher": RESIDUAL}, stop={"steps": 3})
        run_job(job, tmp_path / precision)
        rows = read_run(tmp_path / precision).tables["metrics"]
        found[precision] = rows[rows["name"] != b"teacher seconds"]
    assert found["fp16"]["name"].tolist() == found["float32"]["name"].tolist()
    np.testing.assert_allclose(found["fp16"]["value"], found["float32"]["value"], rtol=1e-2)


def test_a_run_of_the_same_seed_has_the_same_noise_and_another_seed_another(tmp_path: Path, toy_set: Path) -> None:
    def final(name: str, **sections: Any) -> float:
        job = make_job(toy_set, gradients={"teacher": RESIDUAL}, stop={"steps": 4}, **sections)
        return run_job(job, tmp_path / name).loss

    assert final("a") == final("b") != final("c", seed=1)


def values_of(toy_set: Path, **sections: Any) -> dict[str, Any]:
    return {"data": {"name": "packed", "path": str(toy_set)}, "model": {"name": "resnet8"}, **sections}


@pytest.mark.parametrize(
    ("gradients", "error"),
    [
        ({"teacher": {**RESIDUAL}, "weight_noise": 0.1}, "'teacher' does not go with 'weight_noise'"),
        ({"teacher": {**RESIDUAL}, "extrapolation_lr": 0.1}, "'teacher' does not go with 'extrapolation_lr'"),
        ({"teacher": {**RESIDUAL}, "sample_noise": 0.1}, "'teacher' does not go with 'sample_noise'"),
        (
            {"teacher": {**RESIDUAL}, "compression": "fp16"},
            "gradients.teacher: learns from exact sums of gradients, without 'compression'",
        ),
        ({"teacher": {**RESIDUAL}, "measure": False}, "'measure: false' leaves"),
        ({"teacher": {"kind": "residual"}}, "gradients.teacher.small_batch"),
        ({"teacher": {"kind": "subspace"}}, "gradients.teacher.factor"),
        ({"teacher": {"small_batch": 4}}, "'gradients.teacher.kind' is missing: known are mse, residual, subspace"),
        ({"teacher": {**RESIDUAL, "factor": 2}}, "'factor' goes with kind subspace, not residual"),
        ({"teacher": {**RESIDUAL, "memory": 3}}, "'memory' 3 has no room for two clients in each of 2 'train_steps'"),
        (
            {"teacher": {**RESIDUAL, "refresh": "drifts"}},
            "gradients.teacher.refresh: 'drifts' is not known: did you mean 'drift'",
        ),
        ({"teacher": {**RESIDUAL, "threshold": 1}}, "'threshold' goes with a detector as 'refresh', not with every"),
        ({"teacher": {**RESIDUAL}, "chain": ["clip"]}, "gradients.chain"),
    ],
)
def test_what_does_not_fit_is_refused(toy_set: Path, gradients: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_job(values_of(toy_set, gradients=gradients), "job.yaml")
    assert error in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("sections", "error"),
    [
        ({"clients": 1}, "gradients.teacher: learns from how clients' gradients differ: needs at least two"),
        ({"batching": {"global_batch_size": 8}}, "small_batch 8 must be below the global batch, 8 samples"),
        ({"sync": FEDAVG}, "small_batch 8 must be below the batch of a client that trains alone, 4 samples"),
    ],
)
def test_batches_that_do_not_fit_are_refused(toy_set: Path, sections: dict[str, Any], error: str) -> None:
    gradients = {"teacher": {"kind": "residual", "small_batch": 8}}
    with pytest.raises(ConfigError, match=error):
        make_state(make_job(toy_set, gradients=gradients, **sections), LocalCommunicator())


def test_what_a_job_leaves_out_stays_out_of_it(toy_set: Path) -> None:
    """Jobs of older versions keep their text and their digest."""
    job = make_job(toy_set)
    assert "teacher" not in job.to_yaml() and "sample_noise" not in job.to_yaml()
    taught_job = make_job(toy_set, gradients={"teacher": {**RESIDUAL, "refresh": "drift"}})
    assert taught_job.gradients.teacher is not None and taught_job.gradients.teacher.every == 5
    again = JobConfig.model_validate(taught_job.model_dump(mode="json"))
    assert again == taught_job


def test_warnings_tell_what_a_normalising_optimizer_and_skewed_shards_do(
    tmp_path: Path, toy_set: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    job = make_job(
        toy_set,
        gradients={"teacher": RESIDUAL},
        optimizer={"name": "adam", "lr": 1e-3},
        partition={"kind": "labels_per_client", "labels": 1},
        stop={"steps": 1},
    )
    run_job(job, tmp_path)
    told = capfd.readouterr().err
    assert "gradients.teacher: adam divides by the gradient's size" in told
    assert "clients differ by more than their samples' noise" in told


def test_mse_and_subspace_run_and_log(tmp_path: Path, toy_set: Path) -> None:
    for teacher in ({"kind": "mse", "small_batch": 2}, {"kind": "subspace", "factor": 2.0, "rank": 3}):
        folder = tmp_path / str(teacher["kind"])
        run_job(make_job(toy_set, gradients={"teacher": teacher}, stop={"steps": 4}), folder)
        run = read_run(folder)
        assert steps_with(run, "teacher error") == [1] and steps_with(run, "teacher noise") == [0, 1, 2, 3]
        assert not any(math.isnan(loss) for loss in run.tables["steps"]["loss"])
        # Nobody measures the noise scale who does not need it.
        assert np.isnan(run.tables["steps"]["tr_sigma"]).all()
