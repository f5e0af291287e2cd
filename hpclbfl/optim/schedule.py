"""The learning rate as a pure function of progress, in epochs (global samples / training set size).

Linear scaling and its gradual warm-up: P. Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour",
arXiv 1706.02677, sections 2.1 and 2.2: lr = base * B / B_ref, reached from base in equal steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpclbfl.config import JobConfig
from hpclbfl.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """lr(epoch) = warm-up, or peak * decay(epoch).

    Attributes:
        start_lr: where the warm-up comes from: with linear scaling the rate of the reference batch, else zero.
        peak_lr: where it goes to, after scaling.
        step_epochs: length of a step, B / N epochs.
    """

    start_lr: float
    peak_lr: float
    step_epochs: float
    kind: str
    warmup_epochs: float
    milestones_epochs: tuple[float, ...]
    gamma: float
    total_epochs: float

    def lr(self, epoch: float) -> float:
        """Learning rate of a step that starts at `epoch` (samples before it / N)."""
        if epoch < self.warmup_epochs:
            # A step at rate zero would be lost, so that ramp counts the step that begins here as taken.
            reached = epoch if self.start_lr else epoch + self.step_epochs
            return self.start_lr + (self.peak_lr - self.start_lr) * min(1.0, reached / self.warmup_epochs)
        if self.kind == "multistep":
            return self.peak_lr * self.gamma ** sum(epoch >= m for m in self.milestones_epochs)
        if self.kind == "cosine":
            span = self.total_epochs - self.warmup_epochs
            done = min((epoch - self.warmup_epochs) / span, 1.0)
            return self.peak_lr * 0.5 * (1.0 + math.cos(math.pi * done))
        return self.peak_lr


def make_schedule(job: JobConfig, global_batch_size: int, num_train: int) -> Schedule:
    """The job's schedule.

    Args:
        global_batch_size: B, samples per step.
        num_train: N, size of the training set.

    Raises:
        ConfigError: a cosine without an end, or one that ends within the warm-up.
    """
    config = job.schedule
    peak = job.optimizer.lr
    if config.reference_batch_size is not None:
        peak *= global_batch_size / config.reference_batch_size
    total = config.total_epochs
    if config.kind == "cosine":
        total = total if total is not None else planned_epochs(job, global_batch_size, num_train)
        if total is None:
            raise ConfigError("schedule.total_epochs: a cosine needs an end: give it, or stop.epochs, steps or samples")
        if total <= config.warmup_epochs:
            raise ConfigError(f"schedule: the cosine ends at epoch {total:g}, within the warm-up")
    return Schedule(
        start_lr=job.optimizer.lr if config.scaling == "linear" else 0.0,
        peak_lr=peak,
        step_epochs=global_batch_size / num_train,
        kind=config.kind,
        warmup_epochs=config.warmup_epochs,
        milestones_epochs=config.milestones_epochs,
        gamma=config.gamma,
        total_epochs=total or math.inf,
    )


def planned_epochs(job: JobConfig, global_batch_size: int, num_train: int) -> float | None:
    """Where the job's stop conditions end it at the latest; None when only time or accuracy do."""
    stop = job.stop
    ends = []
    if stop.epochs is not None:
        ends.append(stop.epochs)
    if stop.steps is not None:
        ends.append(stop.steps * global_batch_size / num_train)
    if stop.samples is not None:
        ends.append(stop.samples / num_train)
    return min(ends, default=None)
