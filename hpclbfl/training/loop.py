"""The training loop: one step is forward and backward of every client, synchronisation, log, evaluation."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass

from hpclbfl.core.errors import RunFailed
from hpclbfl.core.progress import Progress
from hpclbfl.core.signals import StopRequest
from hpclbfl.runs.log.writer import RunLog
from hpclbfl.training.evaluate import Score, evaluate
from hpclbfl.training.rebalance import adapt, log_plan, observe
from hpclbfl.training.saving import Saver
from hpclbfl.training.state import Experiment
from hpclbfl.training.steplog import StepLog, StepRecord
from hpclbfl.training.steps import (
    CHANGED,
    NONFINITE,
    SAVE,
    STOP,
    TIME_UP,
    UNKNOWN,
    average_clients,
    local_step,
    look_for_nonfinite,
    shared_step,
)
from hpclbfl.training.stopping import reason_to_stop
from hpclbfl.training.watchdog import Watchdog

STOPPED = "asked to stop"
"""Reason of a run that ended early, its state on disk, and is to be resumed."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run came to."""

    reason: str
    """Which stop condition was met."""
    step: int
    epoch: float
    num_samples: int
    elapsed_s: float
    top1: float
    top5: float
    loss: float
    """Test cross-entropy, nats."""


class NotFinite(RunFailed):
    """Training met a gradient that is not finite, on all ranks at the same step."""


@dataclass(frozen=True)
class Services:
    """What a run needs besides the experiment."""

    log: RunLog
    progress: Progress
    saver: Saver
    request: StopRequest
    watchdog: Watchdog


def train(exp: Experiment, services: Services) -> Outcome:
    """Run an experiment to its end on this rank; every rank calls this and gets the same outcome but for the time.

    Raises:
        NotFinite: see `on_nonfinite`; the state is not to be trusted.
    """
    layers = [name for name, parameter in exp.mean.module.named_parameters() if parameter.requires_grad]
    with StepLog(services.log, exp.clock, layers) as steps:
        return _loop(exp, services, steps)


def _loop(exp: Experiment, services: Services, steps: StepLog) -> Outcome:
    log, progress, saver = services.log, services.progress, services.saver
    counters = exp.counters
    checked = exp.start_sizes
    """Batch sizes whose memory has been looked at."""
    # A run may have been killed between its last checkpoint and the word that it is done.
    reason = _reason_at_start(exp)
    if reason and (exp.score is None or exp.score[0] != counters.step):
        evaluate_all(exp, log, progress)
    elif reason:
        # It has been evaluated, but the average is in no checkpoint.
        exp.average_replicas()
    if not exp.job.batching.is_fixed and counters.step == 0:
        log_plan(exp, log)
    while not reason:
        begin = time.perf_counter()
        services.watchdog.step = counters.step
        if exp.sizes != checked:
            exp.check_memory()
            checked = exp.sizes
        # 1. Every client's forward and backward pass, and the update, alone or with the summed gradient.
        record = begin_record(exp)
        is_shared = exp.sync.shared(counters.step + 1)
        if not is_shared and exp.optimizer is not None:
            exp.start_local_training()
        take_step = shared_step if is_shared else local_step
        asked = (STOP if services.request else 0) | (SAVE if saver.asks() else 0)
        votes = take_step(exp, record, asked | _time_vote(exp))

        # 2. Parameters are averaged where the synchroniser says so.
        counters.positions += exp.sampler.counts(exp.sizes_now)
        counters.step += 1
        averages = exp.sync.averages(counters.step, fired=bool(votes & (CHANGED | UNKNOWN)))
        if averages:
            average_clients(exp, record)
            if votes & CHANGED or not votes & UNKNOWN:
                counters.averaged_step = counters.step
        if averages or is_shared:
            counters.round += 1

        # 3. Ranks' times, and the batch sizes that follow from them.
        record.epoch, record.num_samples = exp.epoch, counters.num_samples
        told = observe(exp, record, is_shared, averages)
        # Also at the end: a run that goes on later has the plan of one that never ended.
        adapt(exp, log, told, record, ends_epoch=_is_new_multiple(exp, record, exp.num_train))
        reason = _reason_to_stop(exp) or ("seconds" if votes & TIME_UP else "")

        # 4. The log; on a GPU this is where the host waits for the device.
        evaluates = bool(reason) or _evaluation_is_due(exp, record)
        saves = not reason and (bool(votes & STOP) or saver.is_due(bool(votes & SAVE)))
        if evaluates or saves:
            votes |= look_for_nonfinite(exp, record)
        steps.add(record)
        if evaluates:
            exp.times.settle()
            steps.flush()
        if votes & NONFINITE and exp.job.on_nonfinite in ("stop", "restore"):
            steps.flush()
            raise NotFinite(f"a gradient at or before step {record.step} is not finite (on_nonfinite)")
        log.tick()
        counters.elapsed_s += time.perf_counter() - begin
        progress.step(counters.step, exp.epoch, steps.last_loss)

        # 5. Evaluation and the end, both decided from what all ranks know.
        if evaluates:
            score = evaluate_all(exp, log, progress)
            top1 = exp.job.stop.top1
            reason = reason or ("top1" if top1 is not None and score.top1 >= top1 else "")

        # 6. The state on disk, with the log that belongs to it; the last one, too, from which a run may go on later.
        if saves or reason:
            exp.times.settle()
            steps.flush()
            log.flush(fsync=True)
            saver.save()
            reason = reason or (STOPPED if votes & STOP else "")
    log.flush()
    final = exp.score[1] if exp.score is not None else Score(math.nan, math.nan, math.nan)
    return Outcome(
        reason, counters.step, exp.epoch, counters.num_samples, counters.elapsed_s, final.top1, final.top5, final.loss
    )


def begin_record(exp: Experiment) -> StepRecord:
    """A record of the step about to be taken."""
    counters = exp.counters
    lr = exp.lr_factor * exp.schedule.lr(exp.epoch)
    return StepRecord(counters.step, counters.round, exp.epoch, counters.num_samples, lr, sizes=exp.sizes_now)


def evaluate_all(exp: Experiment, log: RunLog, progress: Progress) -> Score:
    """Score the (virtual) average on the job's splits, write the rows, and return the test split's."""
    counters, config = exp.counters, exp.job.evaluate
    exp.average_replicas()
    module = exp.mean.module
    batch_size = exp.footprint.evaluation_batch(config.batch_size)
    scores = {}
    for split in config.splits:
        images = exp.test_images if split == "test" else exp.train_images
        scores[split] = score = evaluate(module, images, exp.comm, batch_size, exp.autocast())
        if exp.comm.rank == 0:
            log.append(
                "evals",
                step=counters.step - 1,
                epoch=exp.epoch,
                num_samples=counters.num_samples,
                elapsed_s=counters.elapsed_s,
                split=split,
                **asdict(score),
            )
    log.flush()
    exp.score = counters.step, scores["test"]
    progress.evaluated(scores["test"].top1)
    return scores["test"]


def _time_vote(exp: Experiment) -> int:
    limit = exp.job.stop.seconds
    return TIME_UP if limit is not None and exp.comm.rank == 0 and exp.counters.elapsed_s >= limit else 0


def _reason_to_stop(exp: Experiment) -> str:
    """Without those that a clock or an evaluation decides."""
    counters = exp.counters
    return reason_to_stop(exp.job.stop, counters.step, counters.num_samples, exp.num_train)


def _reason_at_start(exp: Experiment) -> str:
    """Of a run that has been restored; equal on all ranks, which have read the same time and score."""
    counters = exp.counters
    if not counters.step:
        return ""
    step, score = exp.score or (0, None)
    top1 = score.top1 if score is not None and step == counters.step else None
    return reason_to_stop(exp.job.stop, counters.step, counters.num_samples, exp.num_train, counters.elapsed_s, top1)


def _evaluation_is_due(exp: Experiment, record: StepRecord) -> bool:
    config, counters = exp.job.evaluate, exp.counters
    if config.every_steps is not None:
        return counters.step % config.every_steps == 0
    if config.every_epochs is None:
        return False
    return _is_new_multiple(exp, record, max(1, round(config.every_epochs * exp.num_train)))


def _is_new_multiple(exp: Experiment, record: StepRecord, period: int) -> bool:
    """Whether the step passed a multiple of so many samples."""
    before = exp.counters.num_samples - int(exp.sampler.counts(record.sizes).sum())
    return exp.counters.num_samples // period > before // period
