"""Losses by hand, and what is said of one of the user's that gives something else than it should."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hpclbfl.config.component_configs import component_config
from hpclbfl.config.components import LOSSES
from hpclbfl.core.errors import ConfigError
from hpclbfl.losses.checked import Loss, mean
from hpclbfl.models import DataSpec
from tests.components import config_of

CLASSES = DataSpec((2,), 3, target_dtype=torch.int64)
NUMBERS = DataSpec((2,), target_shape=(2,))


def test_cross_entropy_by_hand() -> None:
    loss = Loss(config_of(LOSSES, label_smoothing=0.3), CLASSES)
    outputs, targets = torch.tensor([[0.0, math.log(2.0), 0.0], [0.0, 0.0, 0.0]]), torch.tensor([1, 0])
    plain = math.log(2.0) + math.log(3.0)
    assert loss.evaluate(outputs, targets).item() == pytest.approx(plain)
    # 0.7 of the target's, 0.3 spread over all three.
    spread = (2 * math.log(4.0) + math.log(2.0)) / 3 + math.log(3.0)
    assert loss(outputs, targets).item() == pytest.approx(0.7 * plain + 0.3 * spread)
    assert (loss.counts_terms, loss.has_metrics, loss.count(targets)) == (False, False, 2)


def test_mean_squared_error_is_a_mean_within_a_sample_and_a_sum_over_them() -> None:
    loss = Loss(config_of(LOSSES, name="mse"), NUMBERS)
    outputs, targets = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 4.0], [3.0, 1.0]])
    assert loss(outputs, targets).item() == loss.evaluate(outputs, targets).item() == 4 / 2 + 10 / 2
    assert loss(outputs[:, 0], targets[:, 0]).item() == 9.0


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("mse", CLASSES, "mse needs targets of floating point; these are whole numbers"),
        ("cross_entropy", NUMBERS, "cross_entropy needs targets that are classes, whole numbers; these are not"),
    ],
)
def test_a_loss_for_other_targets_is_refused(name: str, data: DataSpec, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Loss(config_of(LOSSES, name=name), data)
    assert str(error.value) == f"loss.name: {message}"


def test_shapes_that_do_not_fit_are_told() -> None:
    with pytest.raises(ConfigError) as error:
        Loss(config_of(LOSSES, name="mse"), NUMBERS)(torch.zeros(4, 1), torch.zeros(4))
    assert str(error.value) == (
        "loss.name: mse: outputs have the shape [4, 1], targets [4]: let the net give the targets' shape"
    )
    with pytest.raises(ConfigError) as error:
        Loss(config_of(LOSSES), CLASSES)(torch.zeros(2, 3), torch.tensor([0, 3]))
    assert str(error.value) == (
        "loss.name: cross_entropy: fails on outputs [2, 3] and targets [2]: IndexError: Target 3 is out of bounds."
    )


OWN = """
import torch
class Own:
    def __init__(self, config, data):
        pass
    def __call__(self, outputs, targets):
        return {call}
    def count(self, targets):
        return {count}
    def metrics(self, outputs, targets):
        return {metrics}
    def summary(self, loss, metrics):
        return {summary}
"""
GOOD = {
    "call": "outputs.sum()",
    "count": "int(targets.sum())",
    "metrics": "{'right': (targets > 0).sum(), 'a': outputs.max()}",
    "summary": "{**metrics, 'square': loss * loss}",
}


def own(tmp_path: Path, **parts: str) -> Loss:
    (tmp_path / "own.py").write_text(OWN.format(**{**GOOD, **parts}))
    return Loss(component_config(LOSSES, {"name": str(tmp_path / "own.py:Own")}, "job.yaml", "loss"), CLASSES)


def test_a_loss_of_the_users_own(tmp_path: Path) -> None:
    loss, targets = own(tmp_path), torch.tensor([0, 2, 3])
    assert loss.counts_terms and loss.has_metrics and loss.count(targets) == 5
    assert loss.evaluate(torch.ones(3), targets).item() == loss(torch.ones(3), targets).item() == 3.0
    assert [(name, value.item()) for name, value in loss.metrics(torch.ones(3), targets).items()] == [
        ("a", 1.0),
        ("right", 2),
    ]
    assert loss.summary(3.0, {"a": 0.5}) == {"a": 0.5, "square": 9.0}
    assert own(tmp_path, count="targets.sum()").count(targets) == 5


@pytest.mark.parametrize(
    ("parts", "call", "message"),
    [
        ({"call": "outputs"}, "loss", "it gives a tensor of shape [3], not one number, the sum over the batch"),
        ({"call": "1.0"}, "loss", "it gives 1.0, not one number, the sum over the batch"),
        (
            {"call": "{}['x']"},
            "loss",
            "fails on outputs [3] and targets [3]: KeyError: 'x'",
        ),
        ({"count": "targets"}, "count", "count gives tensor([1, 1, 1]), not a whole number from 0 up"),
        ({"count": "-1"}, "count", "count gives -1, not a whole number from 0 up"),
        ({"count": "2.0"}, "count", "count gives 2.0, not a whole number from 0 up"),
        ({"count": "True"}, "count", "count gives True, not a whole number from 0 up"),
        ({"metrics": "[1]"}, "metrics", "metrics gives [1], not sums by name"),
        (
            {"metrics": "{'a': 1.0}"},
            "metrics",
            "metrics, of a, gives 1.0, not one number, the sum over the batch",
        ),
        ({"summary": "None"}, "summary", "summary gives None, not numbers by name"),
        ({"summary": "{'a': 'b'}"}, "summary", "summary gives {'a': 'b'}, not numbers by name"),
    ],
)
def test_what_it_gives_is_looked_at(tmp_path: Path, parts: dict[str, str], call: str, message: str) -> None:
    loss, outputs, targets = own(tmp_path, **parts), torch.ones(3), torch.ones(3, dtype=torch.int64)
    calls: dict[str, Any] = {
        "loss": lambda: loss(outputs, targets),
        "count": lambda: loss.count(targets),
        "metrics": lambda: loss.metrics(outputs, targets),
        "summary": lambda: loss.summary(1.0, {}),
    }
    with pytest.raises(ConfigError) as error:
        calls[call]()
    assert str(error.value) == f"loss.name: own.py:Own: {message}"


def test_a_mean_of_no_terms_is_not_a_number() -> None:
    assert mean(6.0, 4) == 1.5 and math.isnan(mean(0.0, 0))
