"""A job's loss as the step, the evaluation and the sharpness call it: what it gives is looked at."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hpclbfl.config.components import LOSSES
from hpclbfl.config.job import JobConfig
from hpclbfl.config.part_names import brief
from hpclbfl.config.sections import LossConfig
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.text import MAX_SHOWN, printable, shown
from hpclbfl.models import DataSpec


class Loss:
    """A loss; see `hpclbfl.losses`.

    Args:
        config: the job's section.
        data: what it is made for.

    Raises:
        ConfigError: also from the methods: it does not go with the data, or gives something else than it should.
    """

    def __init__(self, config: LossConfig, data: DataSpec) -> None:
        self._where = f"loss.name: {brief(config.name)}"
        self._made = LOSSES.make(config, data)
        self.counts_terms = callable(getattr(self._made, "count", None))
        """Whether a sample may be any number of terms."""
        self.has_metrics = callable(getattr(self._made, "metrics", None))
        """Whether an evaluation reports more than the loss."""
        self.has_samples = callable(getattr(self._made, "per_sample", None))
        """Whether it tells the samples' own losses."""

    def __call__(self, outputs: Any, targets: Tensor) -> Tensor:
        """The sum over a batch, 0-d, to be trained."""
        try:
            found = self._made(outputs, targets)
        except (LookupError, ValueError, TypeError) as error:
            # A class beyond the outputs, or other shapes than it takes.
            told = printable(f"{type(error).__name__}: {error}", MAX_SHOWN)
            raise ConfigError(
                f"{self._where}: fails on outputs {_shape(outputs)} and targets {_shape(targets)}: {told}"
            ) from error
        return self._sum(found, "it")

    def per_sample(self, outputs: Any, targets: Tensor) -> Tensor:
        """[b], of each sample, to be trained; only where `has_samples`."""
        found = self._made.per_sample(outputs, targets)
        if not isinstance(found, Tensor) or found.shape != (len(targets),) or found.is_complex():
            given = f"a tensor of shape {list(found.shape)}" if isinstance(found, Tensor) else shown(found)
            raise ConfigError(f"{self._where}: per_sample gives {given}, not one number for each of {len(targets)}")
        return found

    def evaluate(self, outputs: Any, targets: Tensor) -> Tensor:
        """The sum over a batch, 0-d, that an evaluation reports."""
        other = getattr(self._made, "evaluate", None)
        return self(outputs, targets) if other is None else self._sum(other(outputs, targets), "evaluate")

    def count(self, targets: Tensor) -> int:
        """How many terms the sum over a batch has."""
        if not self.counts_terms:
            return len(targets)
        found = self._made.count(targets)
        if isinstance(found, Tensor) and found.dim() == 0 and not found.is_floating_point():
            found = int(found)
        if isinstance(found, bool) or not isinstance(found, int) or found < 0:
            raise ConfigError(f"{self._where}: count gives {shown(found)}, not a whole number from 0 up")
        return found

    def metrics(self, outputs: Any, targets: Tensor) -> dict[str, Tensor]:
        """Sums over a batch, 0-d, by name, names in order."""
        if not self.has_metrics:
            return {}
        found = self._made.metrics(outputs, targets)
        if not isinstance(found, dict) or not all(isinstance(name, str) and name for name in found):
            raise ConfigError(f"{self._where}: metrics gives {shown(found)}, not sums by name")
        return {name: self._sum(found[name], f"metrics, of {printable(name, MAX_SHOWN)},") for name in sorted(found)}

    def summary(self, loss: float, means: dict[str, float]) -> dict[str, float]:
        """What is reported of an evaluation's means, by name."""
        summary = getattr(self._made, "summary", None)
        found = means if summary is None else summary(loss, means)
        if not isinstance(found, dict) or not all(_is_named_number(*item) for item in found.items()):
            raise ConfigError(f"{self._where}: summary gives {shown(found)}, not numbers by name")
        return {name: float(value) for name, value in found.items()}

    def _sum(self, found: Any, what: str) -> Tensor:
        if not isinstance(found, Tensor) or found.dim() != 0 or found.is_complex():
            given = f"a tensor of shape {list(found.shape)}" if isinstance(found, Tensor) else shown(found)
            raise ConfigError(f"{self._where}: {what} gives {given}, not one number, the sum over the batch")
        return found


def make_loss(job: JobConfig, data: DataSpec) -> Loss:
    """The job's loss.

    Raises:
        ConfigError: it does not go with the data, or with the job's other options.
    """
    made = Loss(job.loss, data)
    keys = ("noise_scale", "weight_noise", "sample_noise", "teacher")
    per_sample = [key for key in keys if getattr(job.gradients, key) is not None]
    if made.counts_terms and per_sample:
        raise ConfigError(
            f"gradients.{per_sample[0]}: takes every sample for one term of the loss, which {brief(job.loss.name)} "
            "counts otherwise: leave it out"
        )
    if job.gradients.sample_noise is not None and not made.has_samples:
        raise ConfigError(
            f"gradients.sample_noise: weighs the samples' losses, and {brief(job.loss.name)} has no method per_sample "
            "that tells them"
        )
    return made


def _shape(value: Any) -> str:
    return f"{list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _is_named_number(name: Any, value: Any) -> bool:
    return isinstance(name, str) and bool(name) and isinstance(value, int | float) and not isinstance(value, bool)


def mean(total: float, count: float) -> float:
    """Of `count` terms; NaN of none."""
    return total / count if count else math.nan


def as_full(outputs: Any) -> Any:
    """A net's outputs in float32 at least, for sums over a whole split."""
    is_half = isinstance(outputs, Tensor) and outputs.is_floating_point() and outputs.dtype != torch.float64
    return outputs.float() if is_half else outputs
