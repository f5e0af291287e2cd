"""The learning rate as a pure function of progress, in epochs (global samples / training set size).

Linear scaling with gradual warm-up: P. Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour",
arXiv 1706.02677, sections 2.1 and 2.2: lr = base * B / B_ref, reached from base in equal steps.

Square-root scaling: A. Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv 1404.5997:
lr = base * sqrt(B / B_ref) keeps the variance of the update. For Adam it follows from the limiting stochastic
differential equation: S. Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", arXiv
2205.10287. Their rule also scales 1 - betas and eps with the batch; here the job sets these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpclbfl.config.components import SCHEDULES
from hpclbfl.config.job import JobConfig
from hpclbfl.config.sections import ScheduleConfig
from hpclbfl.core.errors import RunFailed
from hpclbfl.core.text import shown
from hpclbfl.optim.schedules import Decay


@dataclass(frozen=True)
class Schedule:
    """lr(epoch) = warm-up, or peak * decay(epoch).

    Attributes:
        start_lr: rate at the start of the warm-up: with scaling that of the reference batch, else zero.
        peak_lr: rate at the end of the warm-up, after scaling.
        step_epochs: length of a step, B / N epochs.
        warmup_epochs: length of the warm-up.
        decay: maps an epoch after the warm-up to a factor.
    """

    start_lr: float
    peak_lr: float
    step_epochs: float
    warmup_epochs: float
    decay: Decay

    def lr(self, epoch: float) -> float:
        """Learning rate of a step that starts at `epoch` (samples before it / N).

        Raises:
            RunFailed: a schedule of the user's own does not give a factor.
        """
        if epoch < self.warmup_epochs:
            # A warm-up from zero counts the step that starts here, because a step at rate zero would be wasted.
            reached = epoch if self.start_lr else epoch + self.step_epochs
            return self.start_lr + (self.peak_lr - self.start_lr) * min(1.0, reached / self.warmup_epochs)
        factor = self.decay(epoch)
        if not isinstance(factor, float | int) or not 0.0 <= factor < math.inf:
            raise RunFailed(f"schedule: gives {shown(factor)} at epoch {epoch:g}, not a factor of 0 or more")
        return self.peak_lr * factor


def make_schedule(job: JobConfig, global_batch_size: int, num_train: int) -> Schedule:
    """The job's schedule.

    Args:
        job: the job.
        global_batch_size: B, samples per step.
        num_train: N, size of the training set.

    Raises:
        ConfigError: the schedule cannot be used with the job.
    """
    config = with_end(job, global_batch_size, num_train).schedule
    config.check(job)
    return Schedule(
        start_lr=job.optimizer.lr if config.scaling != "none" else 0.0,
        peak_lr=job.optimizer.lr * batch_scaling(config, global_batch_size),
        step_epochs=global_batch_size / num_train,
        warmup_epochs=config.warmup_epochs,
        decay=SCHEDULES.make(config),
    )


def with_end(job: JobConfig, global_batch_size: int, num_train: int) -> JobConfig:
    """The job with an explicit end of its schedule, if that is derived from `stop`; see `make_schedule`.

    This allows extending `stop` later without changing steps that were trained.
    """
    schedule = job.schedule.with_end(planned_epochs(job, global_batch_size, num_train))
    return job.model_copy(update={"schedule": schedule})


def batch_scaling(config: ScheduleConfig, global_batch_size: int) -> float:
    """The factor by which the batch size scales the learning rate: 1, B / B_ref or its square root."""
    if config.reference_batch_size is None:
        return 1.0
    ratio = global_batch_size / config.reference_batch_size
    return math.sqrt(ratio) if config.scaling == "sqrt" else ratio


def planned_epochs(job: JobConfig, global_batch_size: int, num_train: int) -> float | None:
    """The epoch at which the job's stop conditions end it at the latest; None if only time or accuracy do."""
    stop = job.stop
    ends = []
    if stop.epochs is not None:
        ends.append(stop.epochs)
    if stop.steps is not None:
        ends.append(stop.steps * global_batch_size / num_train)
    if stop.samples is not None:
        ends.append(stop.samples / num_train)
    return min(ends, default=None)
