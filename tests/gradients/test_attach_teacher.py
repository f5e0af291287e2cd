"""A teacher attached to the optimizer of a script, in one process whose clients are its backward passes."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from torch import nn

import hpclbfl
from hpclbfl.gradients import Context
from hpclbfl.gradients.change import unknown
from hpclbfl.gradients.gradient import Gradient, Layout
from tests.gradients.teacher.worked import found_of, taught

PASSES, BATCH = 4, 6
RESIDUAL: dict[str, Any] = {"kind": "residual", "small_batch": 3}


def make_model(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 3)).to(dtype)


def teacher_of(**keys: Any) -> hpclbfl.Teacher:
    return hpclbfl.Teacher(**{**RESIDUAL, "local_batch_size": BATCH, "passes": PASSES, **keys})


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def backward(model: nn.Module, step: int, times: float = 1.0, passes: int = PASSES) -> None:
    """Leave the mean gradient of all passes, multiplied."""
    draw = torch.Generator().manual_seed(step)
    model.zero_grad()
    dtype = next(model.parameters()).dtype
    for _ in range(passes):
        inputs, targets = (torch.randn(BATCH, n, generator=draw, dtype=torch.float64).to(dtype) for n in (12, 3))
        (nn.functional.mse_loss(model(inputs), targets) * times / PASSES).backward()


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def train(teacher: hpclbfl.Teacher, model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[dict]:
    told = []
    for step in steps:
        backward(model, step)
        optimizer.step()
        told.append({name: value.item() for name, value in teacher.metrics.items()})
    return told


def test_the_first_step_by_hand() -> None:
    model, twin = make_model(), make_model()
    optimizer = sgd(model)
    teacher = teacher_of().attach(optimizer)
    layout = Layout.of(twin.named_parameters())
    draw = torch.Generator().manual_seed(0)
    flats = []
    for _ in range(PASSES):
        inputs, targets = (torch.randn(BATCH, n, generator=draw, dtype=torch.float64) for n in (12, 3))
        loss = nn.functional.mse_loss(twin(inputs), targets)
        flats.append(Gradient(list(torch.autograd.grad(loss, list(twin.parameters()))), layout).flat)
    found = found_of(layout, flats, [BATCH] * PASSES)
    like, learnt, told = taught(layout, found, **RESIDUAL)
    expected, metrics = like.apply(found.mean, learnt, Context(0, 0, batch_size=24), unknown())
    backward(model, 0)
    optimizer.step()
    for parameter, other, gradient in zip(model.parameters(), twin.parameters(), expected.tensors, strict=True):
        torch.testing.assert_close(parameter.detach(), other.detach() - 0.1 * gradient, rtol=1e-9, atol=1e-12)
    assert teacher.steps == 1 and metrics["teacher noise"] > 0
    for name, value in (metrics | told).items():
        assert teacher.metrics[name].item() == pytest.approx(value.item())


def test_a_loss_that_is_scaled_teaches_the_same() -> None:
    """A sum over ranks in place of a mean, or AMP's scale undone before the step."""
    found = []
    for times in (1.0, 1024.0):
        model = make_model()
        optimizer = sgd(model)
        teacher = teacher_of().attach(optimizer)
        backward(model, 0, times)
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad /= times
        optimizer.step()
        found.append((flat(model), {k: v for k, v in teacher.metrics.items() if k != "teacher seconds"}))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


def test_a_teacher_that_changes_nothing_leaves_the_training_alone() -> None:
    plain, one = make_model(), make_model()
    optimizer, other = sgd(plain), sgd(one)
    hpclbfl.Teacher("subspace", factor=1.0, local_batch_size=BATCH, passes=PASSES, directions=3).attach(other)
    for step in range(4):
        for model, stepped in ((plain, optimizer), (one, other)):
            backward(model, step)
            stepped.step()
    assert torch.equal(flat(plain), flat(one))


def test_gradients_are_caught_in_training_steps_alone_and_it_ends_with_detach() -> None:
    model = make_model()
    optimizer = sgd(model)
    teacher = teacher_of(every=4)
    teacher.attach(optimizer)
    caught = []
    for step in range(8):
        backward(model, step)
        caught.append(len(teacher._caught))
        optimizer.step()
    # Two linear layers and a norm have six parameters; trainings begin with steps 0 and 4.
    assert caught == [6, 6, 0, 0, 6, 6, 0, 0]
    teacher.detach()
    before = flat(model)
    backward(model, 9)
    gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
    optimizer.step()
    torch.testing.assert_close(flat(model), before - 0.1 * gradient)


@pytest.mark.parametrize("keys", [{}, {"kind": "subspace", "small_batch": None, "factor": 2.0}, {"kind": "mse"}])
@pytest.mark.parametrize("cut", [1, 5])
def test_it_goes_on_from_its_state_bit_for_bit(keys: dict[str, Any], cut: int) -> None:
    keys = {k: v for k, v in {**RESIDUAL, **keys, "every": 4}.items() if v is not None}
    whole = make_model()
    optimizer = sgd(whole)
    teacher = hpclbfl.Teacher(local_batch_size=BATCH, passes=PASSES, **keys).attach(optimizer)
    train(teacher, whole, optimizer, range(9))
    first = make_model()
    optimizer = sgd(first)
    teacher = hpclbfl.Teacher(local_batch_size=BATCH, passes=PASSES, **keys).attach(optimizer)
    train(teacher, first, optimizer, range(cut))
    file = io.BytesIO()
    torch.save((teacher.state_dict(), first.state_dict()), file)
    file.seek(0)
    state, weights = torch.load(file)
    second = make_model()
    second.load_state_dict(weights)
    optimizer = sgd(second)
    again = hpclbfl.Teacher(local_batch_size=BATCH, passes=PASSES, **keys)
    if cut == 1:
        again.load_state_dict(state)
        again.attach(optimizer)
    else:
        again.attach(optimizer)
        again.load_state_dict(state)
    train(again, second, optimizer, range(cut, 9))
    assert torch.equal(flat(second), flat(whole)) and again.steps == 9


def test_it_clips_what_it_has_made() -> None:
    model = make_model()
    optimizer = sgd(model)
    teacher_of(max_norm=0.01).attach(optimizer)
    before = flat(model)
    backward(model, 0)
    optimizer.step()
    assert (flat(model) - before).norm().item() == pytest.approx(0.1 * 0.01)


def test_a_step_that_was_left_out_does_not_count() -> None:
    """As torch.amp.GradScaler leaves one out: the passes before the step that is taken teach."""
    models = [make_model(), make_model()]
    for model in models:
        optimizer = sgd(model)
        teacher_of().attach(optimizer)
        if model is models[0]:
            backward(model, 77)
            # BatchNorm's statistics do not matter in training.
        backward(model, 0)
        optimizer.step()
    assert torch.equal(flat(models[0]), flat(models[1]))


def test_a_gradient_that_is_not_finite_is_not_learnt_from() -> None:
    model = make_model()
    optimizer = sgd(model)
    teacher = teacher_of().attach(optimizer)
    backward(model, 0, math.inf)
    optimizer.step()
    assert "teacher energy" not in teacher.metrics and teacher._is_catching


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ({"passes": 1}, "learns from how clients' gradients differ: needs at least two with samples, not 1"),
        ({"small_batch": 24}, "small_batch 24 must be below the global batch, 24 samples"),
        ({"num_ranks": 2}, "sum_=None: expected a function that sums a tensor over the ranks"),
        ({"rank": 1}, "rank=1: expected a whole number from 0 up, below num_ranks"),
        ({"local_batch_size": 2.5}, "local_batch_size=2.5: expected a whole number of at least 1"),
        ({"max_norm": -1}, "max_norm=-1: expected a number above 0, or None"),
        ({"kind": "residue"}, "did you mean 'residual'"),
        (
            {"refresh": "accordion"},
            "refresh='accordion': expected one of every, drift, log_ratio, selsync, squared_norm",
        ),
        ({"draw": 3}, "did you mean 'draws'"),
    ],
)
def test_arguments_that_are_not_right(keys: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError) as caught:
        teacher_of(**keys)
    assert error in str(caught.value) and "\n" not in str(caught.value)


def test_what_it_cannot_be_attached_to() -> None:
    model = make_model()
    optimizer = sgd(model)
    hpclbfl.GradientScaler(2.0).attach(optimizer)
    with pytest.raises(RuntimeError, match="the optimizer has a GradientScaler already"):
        teacher_of().attach(optimizer)
    with pytest.raises(ValueError, match="takes parameters of one type, float32 or float64"):
        teacher_of().attach(torch.optim.SGD([*make_model().parameters(), *make_model(torch.float32).parameters()]))
    with pytest.warns(UserWarning, match="Adam divides by the gradient's own size: its noise included"):
        teacher_of().attach(torch.optim.Adam(model.parameters()))
    state = teacher_of().attach(sgd(make_model())).state_dict()
    other = nn.Linear(4, 2, dtype=torch.float64)
    teacher = teacher_of()
    teacher.load_state_dict(state)
    with pytest.raises(ValueError, match="not the state of a Teacher of this kind and net"):
        teacher.attach(sgd(other))
    backward(other_model := make_model(), 0)
    optimizer = sgd(other_model)
    teacher_of(passes=5).attach(optimizer)
    backward(other_model, 0)
    with pytest.raises(RuntimeError, match="needs as many backward passes before each step"):
        optimizer.step()
