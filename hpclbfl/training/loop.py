"""The training loop: one step is forward and backward of every client, synchronisation, log, evaluation."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from hpclbfl.algorithms.flags import NONFINITE, SAVE, STOP, TIME_UP
from hpclbfl.algorithms.record import StepRecord
from hpclbfl.core.errors import RunFailed
from hpclbfl.core.progress import Progress
from hpclbfl.core.signals import StopRequest
from hpclbfl.runs.log.schema import ALL
from hpclbfl.runs.log.writer import RunLog
from hpclbfl.training.evaluate import Score, evaluate
from hpclbfl.training.rebalance import log_plan, observe, rebalance
from hpclbfl.training.saving import CheckpointManager
from hpclbfl.training.state import TrainState
from hpclbfl.training.steplog import StepLog
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
    """Of the test split."""


class NotFinite(RunFailed):
    """Training met a gradient that is not finite, on all ranks at the same step."""


@dataclass(frozen=True)
class Services:
    """What a run needs besides the experiment."""

    log: RunLog
    progress: Progress
    saver: CheckpointManager
    request: StopRequest
    watchdog: Watchdog


def train(state: TrainState, services: Services) -> Outcome:
    """Run an experiment to its end on this rank; every rank calls this and gets the same outcome but for the time.

    Raises:
        NotFinite: see `on_nonfinite`; the state is not to be trusted.
    """
    layers = [name for name, parameter in state.mean.module.named_parameters() if parameter.requires_grad]
    with StepLog(services.log, state.clock, layers, is_first=state.comm.rank == 0) as steps:
        return _loop(state, services, steps)


def _loop(state: TrainState, services: Services, steps: StepLog) -> Outcome:
    log, progress, saver = services.log, services.progress, services.saver
    counters = state.counters
    checked = state.start_sizes
    """Batch sizes whose memory has been looked at."""
    # A run may have been killed between its last checkpoint and the word that it is done.
    reason = _reason_at_start(state)
    if reason and (state.score is None or state.score[0] != counters.step):
        evaluate_all(state, log, progress)
    elif reason:
        # It has been evaluated, but the average is in no checkpoint.
        state.average_replicas()
    if not state.job.batching.is_fixed and counters.step == 0:
        log_plan(state, log)
    while not reason:
        begin = time.perf_counter()
        services.watchdog.step = counters.step
        if state.sizes != checked:
            state.check_memory()
            checked = state.sizes
        # 1. The algorithm's step: every client's passes, and the update, alone or with the summed gradient.
        record = begin_record(state)
        asked = (STOP if services.request else 0) | (SAVE if saver.asks() else 0)
        flags = state.algorithm.step(state, record, asked | _time_flag(state))

        # 2. What the algorithm does at the end of a step: an averaging, where it is time.
        counters.positions += state.counts_now
        counters.step += 1
        ends_round = state.algorithm.end_of_step(state, record, flags)
        counters.round += ends_round

        # 3. Ranks' times, and the batch sizes that follow from them.
        record.epoch, record.num_samples = state.epoch, counters.num_samples
        gathered = observe(state, record, ends_round)
        # Also at the end: a run that goes on later has the plan of one that never ended.
        rebalance(state, log, gathered, record, ends_epoch=_is_new_multiple(state, record, state.num_train))
        reason = _reason_to_stop(state) or ("seconds" if flags & TIME_UP else "")

        # 4. The log; on a GPU this is where the host waits for the device.
        evaluates = bool(reason) or _evaluation_is_due(state, record)
        saves = not reason and (bool(flags & STOP) or saver.is_due(bool(flags & SAVE)))
        if evaluates or saves:
            flags |= state.look_for_nonfinite(record)
        steps.add(record)
        if evaluates:
            state.times.settle()
            steps.flush()
        if flags & NONFINITE and state.job.on_nonfinite in ("stop", "restore"):
            steps.flush()
            raise NotFinite(f"a gradient at or before step {record.step} is not finite (on_nonfinite)")
        log.tick()
        counters.elapsed_s += time.perf_counter() - begin
        progress.step(counters.step, state.epoch, steps.last_loss)

        # 5. Evaluation and the end, both decided from what all ranks know.
        if evaluates:
            score = evaluate_all(state, log, progress)
            top1 = state.job.stop.top1
            reason = reason or ("top1" if top1 is not None and score.top1 >= top1 else "")

        # 6. The state on disk, with the log that belongs to it; the last one, too, from which a run may go on later.
        if saves or reason:
            state.times.settle()
            steps.flush()
            log.flush(fsync=True)
            saver.save()
            reason = reason or (STOPPED if flags & STOP else "")
    log.flush()
    final = state.score[1] if state.score is not None else Score(math.nan, math.nan, math.nan)
    return Outcome(
        reason, counters.step, state.epoch, counters.num_samples, counters.elapsed_s, final.top1, final.top5, final.loss
    )


def begin_record(state: TrainState) -> StepRecord:
    """A record of the step about to be taken."""
    counters = state.counters
    lr, sizes = state.lr_factor * state.schedule.lr(state.epoch), state.sizes_now
    after = (counters.num_samples + int(state.sampler.counts(sizes).sum())) / state.num_train
    return StepRecord(
        counters.step, counters.round, state.epoch, counters.num_samples, lr, sizes=sizes, epoch_after=after
    )


def evaluate_all(state: TrainState, log: RunLog, progress: Progress) -> Score:
    """Score the (virtual) average on the job's splits, write the rows, and return the test split's."""
    counters, config = state.counters, state.job.evaluate
    state.average_replicas()
    module = state.mean.module
    batch_size = state.footprint.evaluation_batch(config.batch_size)
    scores = {}
    for split in config.splits:
        batches = state.test if split == "test" else state.train
        scores[split] = score = evaluate(
            module, batches, state.comm, batch_size, state.autocast(), state.loss, state.has_classes
        )
        if state.comm.rank == 0:
            log.append(
                "evals",
                step=counters.step - 1,
                epoch=state.epoch,
                num_samples=counters.num_samples,
                elapsed_s=counters.elapsed_s,
                split=split,
                loss=score.loss,
                top1=score.top1,
                top5=score.top5,
            )
            for name, value in score.metrics.items():
                log.append("metrics", step=counters.step - 1, client=ALL, name=f"{split} {name}", value=value)
    log.flush()
    state.score = counters.step, scores["test"]
    progress.evaluated(scores["test"].text)
    return scores["test"]


def _time_flag(state: TrainState) -> int:
    limit = state.job.stop.seconds
    return TIME_UP if limit is not None and state.comm.rank == 0 and state.counters.elapsed_s >= limit else 0


def _reason_to_stop(state: TrainState) -> str:
    """Without those that a clock or an evaluation decides."""
    counters = state.counters
    return reason_to_stop(state.job.stop, counters.step, counters.num_samples, state.num_train)


def _reason_at_start(state: TrainState) -> str:
    """Of a run that has been restored; equal on all ranks, which have read the same time and score."""
    counters = state.counters
    if not counters.step:
        return ""
    step, score = state.score or (0, None)
    top1 = score.top1 if score is not None and step == counters.step else None
    return reason_to_stop(
        state.job.stop, counters.step, counters.num_samples, state.num_train, counters.elapsed_s, top1
    )


def _evaluation_is_due(state: TrainState, record: StepRecord) -> bool:
    config, counters = state.job.evaluate, state.counters
    if config.every_steps is not None:
        return counters.step % config.every_steps == 0
    if config.every_epochs is None:
        return False
    return _is_new_multiple(state, record, max(1, round(config.every_epochs * state.num_train)))


def _is_new_multiple(state: TrainState, record: StepRecord, period: int) -> bool:
    """Whether the step passed a multiple of so many samples."""
    before = state.counters.num_samples - int(state.sampler.counts(record.sizes).sum())
    return state.counters.num_samples // period > before // period
