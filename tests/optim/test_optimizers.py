from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpclbfl.config.components import OPTIMIZERS
from hpclbfl.config.sections import OptimizerConfig
from hpclbfl.optim.optimizers import make_optimizer, parameter_groups
from hpclbfl.optim.slots import reset_slots
from hpclbfl.runs.log.reader import read_run
from hpclbfl.training.session import run_job
from tests.components import config_of
from tests.conftest import make_job

STEPS = 3


def tensors(zero_weight: bool = False) -> tuple[list[nn.Parameter], list[list[Tensor]]]:
    """A weight [3, 2] and a bias [3], and their gradients in three steps."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight, bias = draw(3, 2), draw(3)
    gradients = [[draw(3, 2), draw(3)] for _ in range(STEPS)]
    return [nn.Parameter(weight * (not zero_weight)), nn.Parameter(bias)], gradients


def trained(config: OptimizerConfig, factor: float = 1.0, zero_weight: bool = False) -> list[Tensor]:
    parameters, gradients = tensors(zero_weight)
    optimizer = make_optimizer(config, iter(parameters))
    for of_step in gradients:
        for parameter, gradient in zip(parameters, of_step, strict=True):
            parameter.grad = factor * gradient
        optimizer.step()
    return [p.detach() for p in parameters]


def norm(tensor: Tensor) -> float:
    return float(tensor.square().sum()) ** 0.5


def by_lars(w: Tensor, gradients: list[Tensor], c: OptimizerConfig, adapts: bool) -> Tensor:
    """The formulas of You et al. 2017, for one tensor."""
    momentum = torch.zeros_like(w)
    for gradient in gradients:
        step = gradient
        if adapts:
            denominator = norm(gradient) + c.weight_decay * norm(w) + 1e-8
            ratio = c.trust_coefficient * norm(w) / denominator if norm(w) > 0 and norm(gradient) > 0 else 1.0
            step = ratio * (gradient + c.weight_decay * w)
        momentum = c.momentum * momentum + step
        w = w - c.lr * (step + c.momentum * momentum if c.nesterov else momentum)
    return w


def by_lamb(w: Tensor, gradients: list[Tensor], c: OptimizerConfig, adapts: bool) -> Tensor:
    """The formulas of You et al. 2019, for one tensor."""
    first, second = torch.zeros_like(w), torch.zeros_like(w)
    for step, gradient in enumerate(gradients, start=1):
        first = c.betas[0] * first + (1 - c.betas[0]) * gradient
        second = c.betas[1] * second + (1 - c.betas[1]) * gradient**2
        update = first / (1 - c.betas[0] ** step) / ((second / (1 - c.betas[1] ** step)).sqrt() + c.eps)
        ratio = 1.0
        if adapts:
            update = update + c.weight_decay * w
            ratio = norm(w) / norm(update) if norm(w) > 0 and norm(update) > 0 else 1.0
        w = w - c.lr * ratio * update
    return w


CASES = {
    "lars": config_of(OPTIMIZERS, name="lars", lr=5.0, momentum=0.9, weight_decay=0.1),
    "lars nesterov": config_of(
        OPTIMIZERS, name="lars", lr=5.0, momentum=0.9, nesterov=True, weight_decay=0.1, trust_coefficient=0.02
    ),
    "lars without decay": config_of(OPTIMIZERS, name="lars", lr=5.0, momentum=0.5),
    "lars for all": config_of(OPTIMIZERS, name="lars", lr=5.0, weight_decay=0.1, decay="all"),
    "lamb": config_of(OPTIMIZERS, name="lamb", lr=0.1, weight_decay=0.1),
    "lamb eps": config_of(OPTIMIZERS, name="lamb", lr=0.1, weight_decay=0.1, betas=(0.8, 0.9), eps=0.5),
    "lamb without decay": config_of(OPTIMIZERS, name="lamb", lr=0.1),
    "lamb for all": config_of(OPTIMIZERS, name="lamb", lr=0.1, weight_decay=0.1, decay="all"),
}


@pytest.mark.parametrize("zero_weight", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_lars_and_lamb_follow_their_formulas(case: str, zero_weight: bool) -> None:
    config = CASES[case]
    rule = by_lars if config.name == "lars" else by_lamb
    parameters, gradients = tensors(zero_weight)
    got = trained(config, zero_weight=zero_weight)
    for i, adapts in enumerate((True, config.decay == "all")):
        wanted = rule(parameters[i].detach(), [g[i] for g in gradients], config, adapts)
        torch.testing.assert_close(got[i], wanted, rtol=1e-12, atol=1e-14)


def test_first_step_of_lars_by_hand() -> None:
    """|w| = 5, |g| = 10, wd = 1, eta = 0.3: ratio 0.3 * 5 / (10 + 5) = 0.1, a step of 0.1 * (g + w)."""
    weight, bias = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = make_optimizer(
        config_of(OPTIMIZERS, name="lars", lr=1.0, weight_decay=1.0, trust_coefficient=0.3), [weight, bias]
    )
    weight.grad, bias.grad = torch.tensor([[6.0, -8.0]]), torch.tensor([6.0, -8.0])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([[2.1, 4.4]]))
    assert bias.tolist() == [-3, 12]


def test_a_constant_factor_nearly_cancels_under_lars() -> None:
    config = config_of(OPTIMIZERS, name="lars", lr=5.0, momentum=0.9, weight_decay=1e-3)
    start, plain, scaled = tensors()[0], trained(config), trained(config, factor=8.0)
    moves = [[norm(after[i] - start[i].detach()) for i in (0, 1)] for after in (plain, scaled)]
    assert moves[1][0] == pytest.approx(moves[0][0], rel=1e-3)
    assert not torch.equal(plain[0], scaled[0])
    # The bias has no trust ratio: plain momentum SGD.
    assert moves[1][1] == pytest.approx(8 * moves[0][1], rel=1e-12)


def test_a_constant_factor_cancels_under_lamb() -> None:
    config = config_of(OPTIMIZERS, name="lamb", lr=0.1, eps=1e-16)
    for plain, scaled in zip(trained(config), trained(config, factor=5.0), strict=True):
        torch.testing.assert_close(scaled, plain, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    ("config", "decays"),
    [
        ({"name": "sgd"}, [0.1]),
        ({"name": "adamw"}, [0.1]),
        ({"name": "lars", "decay": "all"}, [0.1]),
        ({"name": "sgd", "decay": "weights"}, [0.1, 0.0]),
        ({"name": "adam", "decay": "weights"}, [0.1, 0.0]),
        ({"name": "lars"}, [0.1, 0.0]),
        ({"name": "lamb", "decay": None}, [0.1, 0.0]),
    ],
)
def test_decay_groups(config: dict[str, Any], decays: list[float]) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    made = make_optimizer(config_of(OPTIMIZERS, weight_decay=0.1, **config), net.parameters())
    assert [group["weight_decay"] for group in made.param_groups] == decays
    groups = [[id(p) for p in group["params"]] for group in made.param_groups]
    conv, norm_layer, linear = net[0], net[1], net[3]
    weights = [conv.weight, linear.weight]
    others = [conv.bias, norm_layer.weight, norm_layer.bias, linear.bias]
    if len(decays) == 1:
        assert groups == [[id(p) for p in net.parameters()]]
    else:
        assert groups == [[id(p) for p in weights], [id(p) for p in others]]


def test_no_group_is_empty() -> None:
    config = config_of(OPTIMIZERS, name="lars")
    assert len(parameter_groups(config, [nn.Parameter(torch.zeros(2, 2))])) == 1
    assert len(parameter_groups(config, [nn.Parameter(torch.zeros(2))])) == 1


def test_sgd_decays_only_weights() -> None:
    """Zero gradients: one step is w * (1 - lr * wd) for weights, nothing for biases."""
    weight, bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = make_optimizer(config_of(OPTIMIZERS, lr=0.5, weight_decay=0.5, decay="weights"), [weight, bias])
    weight.grad, bias.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    assert weight.flatten().tolist() == [0.75] * 4 and bias.tolist() == [1, 1]


NAMES = [
    {"name": "sgd", "momentum": 0.9},
    {"name": "adam"},
    {"name": "adamw"},
    {"name": "lars", "momentum": 0.9},
    {"name": "lamb"},
]


@pytest.mark.parametrize("keys", NAMES, ids=lambda keys: keys["name"])
def test_a_reset_optimizer_steps_like_a_fresh_one(keys: dict[str, Any]) -> None:
    config = config_of(OPTIMIZERS, lr=0.1, weight_decay=0.1, decay="weights", **keys)
    after = []
    for used in (False, True):
        parameters, gradients = tensors()
        start = [p.detach().clone() for p in parameters]
        optimizer = make_optimizer(config, parameters)
        if used:
            for of_step in gradients[1:]:
                for parameter, gradient in zip(parameters, of_step, strict=True):
                    parameter.grad = gradient
                optimizer.step()
            reset_slots(optimizer)
            with torch.no_grad():
                for parameter, value in zip(parameters, start, strict=True):
                    parameter.copy_(value)
        for parameter, gradient in zip(parameters, gradients[0], strict=True):
            parameter.grad = gradient
        optimizer.step()
        after.append([p.detach() for p in parameters])
    assert all(torch.equal(a, b) for a, b in zip(*after, strict=True))


@pytest.mark.parametrize("optimizer", [{"name": "lars", "lr": 2.0, "momentum": 0.9}, {"name": "lamb", "lr": 0.01}])
@pytest.mark.parametrize(
    "sync",
    [
        {"kind": "bsp"},
        {"kind": "fedavg", "local_steps": 2, "optimizer_state": "average"},
        {"kind": "fedavg", "local_steps": 2, "optimizer_state": "reset"},
    ],
    ids=["bsp", "average", "reset"],
)
def test_jobs_train_with_lars_and_lamb(
    tmp_path: Path, toy_set: Path, sync: dict[str, Any], optimizer: dict[str, Any]
) -> None:
    job = make_job(toy_set, sync=sync, optimizer={**optimizer, "weight_decay": 5e-4}, stop={"steps": STEPS})
    run_job(job, tmp_path)
    rows = read_run(tmp_path).tables["steps"]
    assert len(rows) == STEPS * 4 and np.isfinite(rows["loss"]).all()
    assert set(rows["lr"]) == {optimizer["lr"]}
    saved = torch.load(tmp_path / "model.pt")
    assert all(value.isfinite().all() for value in saved.values())


def test_moments_are_kept_averaged_or_reset_as_the_job_says(tmp_path: Path, toy_set: Path) -> None:
    """Keeping, averaging and resetting them differ from the step after the averaging on."""
    weights = []
    for state in ("keep", "average", "reset"):
        job = make_job(
            toy_set,
            sync={"kind": "fedavg", "local_steps": 2, "optimizer_state": state},
            optimizer={"name": "lamb", "lr": 0.01},
            stop={"steps": STEPS},
        )
        run_job(job, tmp_path / state)
        weights.append(torch.load(tmp_path / state / "model.pt")["conv1.weight"])
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
