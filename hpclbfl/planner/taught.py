"""Memory that a teacher of Eq. 5 takes on a rank, which a probe of a single rank cannot train.

Between trainings: what it has learnt, such as K compressed residuals, and the critical directions. In a training step
also the own gradients of the rank's clients; while clients train alone, their mean besides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from hpclbfl.config.components import TEACHERS
from hpclbfl.config.job import JobConfig
from hpclbfl.config.sections import GradientsConfig, NoiseScaleConfig
from hpclbfl.gradients.gradient import Layout


def kept_for_teacher(job: JobConfig, layout: Layout, num_clients: int) -> list[Tensor]:
    """Tensors as large as those that a rank keeps for its teacher in a training step, all of their memory in use.

    Args:
        num_clients: of the rank.
    """
    config = job.gradients.teacher
    if config is None:
        return []
    learnt = TEACHERS.make(config).init(layout, max(2, job.clients or num_clients))
    num_gradients = num_clients + job.sync.trains_alone
    gradients = torch.ones(num_gradients * layout.size, dtype=layout.dtype, device=layout.device)
    return [gradients, *(tensor.fill_(1) for tensor in _tensors(learnt))]


def without_teacher(gradients: GradientsConfig) -> GradientsConfig:
    """The gradients' section for one client alone, which measures what the teacher has measured."""
    if gradients.teacher is None:
        return gradients
    changes: dict[str, Any] = {"teacher": None}
    if gradients.chain is not None:
        changes["chain"] = tuple(entry for entry in gradients.chain if entry != "teacher") or None
    if gradients.teacher.needs_noise and gradients.noise_scale is None:
        changes["noise_scale"] = NoiseScaleConfig()
    return gradients.model_copy(update=changes)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
