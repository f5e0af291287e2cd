"""Stop conditions."""

from __future__ import annotations

import math

from hpclbfl.config.sections import StopConfig
from hpclbfl.runs.folder import Done


def reason_to_stop(
    stop: StopConfig,
    step: int,
    num_samples: int,
    num_train: int,
    elapsed_s: float = 0.0,
    top1: float | None = None,
) -> str:
    """The first stop condition that is met; empty if none is.

    Args:
        stop: of the job.
        step, num_samples: optimizer steps and samples so far.
        num_train: N, size of the training set.
        elapsed_s: training time so far; 0: the clock is asked elsewhere.
        top1: the newest test accuracy, a fraction; None or NaN: not known.
    """
    if stop.steps is not None and step >= stop.steps:
        return "steps"
    if stop.samples is not None and num_samples >= stop.samples:
        return "samples"
    if stop.epochs is not None and num_samples >= round(stop.epochs * num_train):
        return "epochs"
    if stop.seconds is not None and elapsed_s >= stop.seconds:
        return "seconds"
    if stop.top1 is not None and top1 is not None and not math.isnan(top1) and top1 >= stop.top1:
        return "top1"
    return ""


def is_finished(done: Done, stop: StopConfig) -> bool:
    """Whether a finished run meets `stop`, which may have been raised since."""
    num_train = done.num_train
    if num_train is None:
        # Not written by older versions.
        num_train = round(min(done.num_samples / max(done.epoch, 1e-6), 2.0**53)) or 1
    return bool(reason_to_stop(stop, done.step, done.num_samples, num_train, done.elapsed_s, done.top1))
