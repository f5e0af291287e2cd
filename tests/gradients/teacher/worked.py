"""Small sets of clients whose gradients are given, for teachers whose numbers are worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpclbfl.config.components import TEACHERS
from hpclbfl.gradients import Context
from hpclbfl.gradients.change import unknown
from hpclbfl.gradients.gradient import Gradient, Layout
from hpclbfl.gradients.learning import ClientGradients
from tests.components import config_of


def layout_of(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Layout:
    """Of parameters of these shapes; as in the trainer, the last one lies first."""
    named = [(f"p{i}", torch.nn.Parameter(torch.zeros(shape, dtype=dtype))) for i, shape in enumerate(shapes)]
    return Layout.of(named)


def found_of(layout: Layout, flats: Sequence[Tensor], sizes: Sequence[int]) -> ClientGradients:
    """What clients with these mean gradients, [P] each, give a teacher on one rank."""
    mean = sum(b / sum(sizes) * flat for b, flat in zip(sizes, flats, strict=True))
    assert isinstance(mean, Tensor)
    own = {client: Gradient(flat, layout).tensors for client, flat in enumerate(flats)}
    return ClientGradients(own, np.array(sizes), Gradient(mean, layout), lambda tensor: None)


def taught(layout: Layout, found: ClientGradients | Sequence[ClientGradients], **keys: Any) -> tuple[Any, Any, Any]:
    """A teacher of a kind after these training steps: it, its state, and what it told of the last one."""
    teacher = TEACHERS.make(config_of(TEACHERS, **keys))
    lessons = [found] if isinstance(found, ClientGradients) else found
    state, told = teacher.init(layout, len(lessons[0].counts)), {}
    for number, one in enumerate(lessons):
        context = Context(0, number, batch_size=int(one.counts.sum()))
        lesson = teacher.collect(one, context, unknown())
        assert lesson is not None
        told = teacher.test(lesson, state, context)
        state, more = teacher.learn(lesson, state, number == 0, one, context)
        told |= more
    return teacher, state, told


def applied(
    teacher: Any, state: Any, gradient: Gradient, batch: int, step: int = 0, **context: Any
) -> tuple[Gradient, dict[str, Tensor]]:
    """The teacher's gradient of a step over so many samples."""
    found: tuple[Gradient, dict[str, Tensor]] = teacher.apply(
        gradient, state, Context(0, step, batch_size=batch, **context), unknown()
    )
    return found
