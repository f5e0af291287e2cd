"""When a teacher asks for the clients' gradients, and what becomes of them: with a kind that only counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from hpclbfl.config.components import TEACHERS
from hpclbfl.gradients import Context
from hpclbfl.gradients.gradient import Gradient
from hpclbfl.gradients.learning import ClientGradients, Learner
from hpclbfl.gradients.teacher.transform import TeacherTransform
from tests.components import config_of
from tests.gradients.teacher.worked import layout_of

LAYOUT = layout_of((2,))


class Counting:
    """Its lessons are the error that it is told to have; what it has learnt is their number."""

    def __init__(self) -> None:
        self.error: float | None = 0.5
        self.begun: list[int] = []

    def init(self, layout: Any, num_clients: int) -> torch.Tensor:
        return torch.zeros(())

    def collect(self, found: ClientGradients, ctx: Context, change: torch.Tensor) -> float | None:
        return self.error

    def test(self, lesson: float, state: torch.Tensor, ctx: Context) -> dict[str, torch.Tensor]:
        return {"teacher error": torch.tensor(lesson).double()}

    def learn(
        self, lesson: float, state: torch.Tensor, begins: bool, found: ClientGradients, ctx: Context
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if begins:
            self.begun.append(ctx.step)
        return state + 1, {}

    def has_drifted(self, error: float, reference: float) -> bool:
        return error > 2 * reference

    def apply(
        self, gradient: Gradient, state: torch.Tensor, ctx: Context, change: torch.Tensor
    ) -> tuple[Gradient, dict[str, torch.Tensor]]:
        return gradient, {}


def made(**keys: Any) -> tuple[TeacherTransform, Counting]:
    teacher = TeacherTransform(config_of(TEACHERS, kind="mse", small_batch=1, **keys))
    kind = Counting()
    teacher.kind, teacher._change = kind, None
    teacher.begin(LAYOUT, 4, 0)
    return teacher, kind


def take(
    teacher: TeacherTransform, kind: Counting, errors: dict[int, float | None], sq_norms: dict[int, float] | None = None
) -> list[int]:
    """The steps of twelve whose gradients it asks for, with its errors in them, 0.5 where nothing is said."""
    asked, state = [], teacher.init(LAYOUT)
    for step in range(12):
        gradient = Gradient(torch.tensor([(sq_norms or {}).get(step, 1.0), 0.0]).double().sqrt(), LAYOUT)
        if teacher.wants(step, [state]):
            asked.append(step)
            kind.error = errors.get(step, 0.5)
            found = ClientGradients({}, np.array([4, 4]), gradient, lambda tensor: None)
            teacher.learn(found, [state], Context(0, step))
        _, state, _ = teacher.update(gradient, state, Context(0, step))
    return asked


def test_it_learns() -> None:
    assert isinstance(made()[0], Learner)


@pytest.mark.parametrize(
    ("keys", "asked", "begun"),
    [
        ({"every": 5}, [0, 1, 5, 6, 10, 11], [0, 5, 10]),
        ({"every": 4, "train_steps": 1, "start_step": 2}, [2, 6, 10], [2, 6, 10]),
        # Intervals shorter than a training: one follows the other.
        ({"every": 1}, list(range(12)), [0, 2, 4, 6, 8, 10]),
    ],
)
def test_it_asks_at_intervals(keys: dict[str, Any], asked: list[int], begun: list[int]) -> None:
    teacher, kind = made(**keys)
    assert take(teacher, kind, {}) == asked and kind.begun == begun


def test_drift_is_told_from_the_first_look_after_a_training() -> None:
    """Looks at steps 3, 5, 7 after the training of steps 0 and 1; the error of 0.5 has doubled at step 7."""
    teacher, kind = made(refresh="drift", every=2)
    assert take(teacher, kind, {1: 0.01, 5: 0.9, 7: 1.1}) == [0, 1, 3, 5, 7, 8, 10]
    # The look at step 7 is the first lesson of the next training.
    assert kind.begun == [0, 7] and teacher.memory.learnt.item() == 4
    assert teacher.memory.progress.reference == 0.5


def test_a_detector_is_remembered_until_it_is_answered() -> None:
    """It fires at step 3, before a training may follow the one of step 1, and at step 9."""
    teacher, kind = made(refresh="squared_norm", threshold=2.0, every=4)
    assert take(teacher, kind, {}, {3: 9.0, 9: 9.0}) == [0, 1, 5, 6, 10, 11]


def test_what_cannot_be_learnt_is_asked_for_again() -> None:
    teacher, kind = made(every=8)
    assert take(teacher, kind, {0: None, 2: None}) == [0, 1, 2, 3, 9, 10]
    assert kind.begun == [1, 9] and math.isnan(teacher.memory.progress.reference)
