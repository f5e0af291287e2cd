"""Notes at the start, where a run differs from what its job seems to ask for, and a warning at the end."""

from __future__ import annotations

from collections.abc import Sequence

from hpclbfl.algorithms.shared_model import SharedModel
from hpclbfl.config.component_configs import transform_configs
from hpclbfl.config.job import JobConfig
from hpclbfl.config.part_names import brief, parse_name
from hpclbfl.config.sections import OptimizerConfig
from hpclbfl.data.sampling import Sampler
from hpclbfl.training.state import TrainState

_NAMED = 5
"""How many clients a note lists at most."""


def notices_at_start(
    job: JobConfig, asked: Sequence[int], sampler: Sampler, global_batch_size: int, num_train: int
) -> tuple[str, ...]:
    """One line for each note.

    Args:
        asked: b_c of every client that the job asks for.
        global_batch_size: B, samples per step.
        num_train: N, size of the training set.
    """
    lines = (
        _capped_batches(asked, sampler),
        _empty_shards(sampler),
        job.sync.rounding(global_batch_size, num_train),
        *_short_intervals(job, global_batch_size / num_train),
    )
    return tuple(line for line in lines if line)


def warning_at_end(state: TrainState) -> str:
    """A warning if the clients trained alone and were never averaged; else empty.

    It covers the whole run, earlier attempts included.
    """
    counters = state.counters
    if isinstance(state.model, SharedModel) or counters.averaged_step or (counters.positions > 0).sum() < 2:
        return ""
    why = state.algorithm.why_never(counters.step, counters.round)
    if not why:
        return ""
    return (
        f"the clients trained alone and were never averaged: {why}; what was evaluated, and model.pt, is their "
        "average, on which none of them has trained"
    )


def _capped_batches(asked: Sequence[int], sampler: Sampler) -> str:
    counts = sampler.counts(asked).tolist()
    cut = [count for count, size in zip(counts, asked, strict=True) if 0 < count < size]
    if not cut:
        return ""
    span = f"{min(cut)}" if min(cut) == max(cut) else f"{min(cut)} to {max(cut)}"
    return (
        f"batches are capped at what the clients hold: {len(cut)} of {len(asked)} take {span} samples a step, "
        f"the global batch is {sum(counts)} instead of {sum(asked)}"
    )


def _empty_shards(sampler: Sampler) -> str:
    empty = [client for client, size in enumerate(sampler.capacity.tolist()) if size == 0]
    if not empty:
        return ""
    if len(empty) == 1:
        return f"client {empty[0]} holds no samples and takes part in nothing"
    return f"{_named(empty, len(sampler.capacity))} hold no samples and take part in nothing"


def _named(clients: Sequence[int], count: int) -> str:
    """`clients 0, 3 and 7`, or `12 of 100 clients (0, 3, 7, 8, 9, ...)`."""
    names = [str(client) for client in clients]
    if len(names) <= _NAMED:
        return f"clients {', '.join(names[:-1])} and {names[-1]}"
    return f"{len(names)} of {count} clients ({', '.join(names[:_NAMED])}, ...)"


def _short_intervals(job: JobConfig, step_epochs: float) -> list[str]:
    """Intervals in epochs that are shorter than one step, a run's resolution."""
    every, warmup = job.evaluate.every_epochs, job.schedule.warmup_epochs
    step = f"a step is {step_epochs:.4g} epochs"
    lines = []
    if every is not None and every < step_epochs * (1 - 1e-9):
        lines.append(f"evaluate.every_epochs {every:g}: {step}, after each of which the net is evaluated")
    if 0 < warmup < step_epochs * (1 - 1e-9):
        lines.append(f"schedule.warmup_epochs {warmup:g}: {step}, the warm-up ends with the first one")
    return lines


def chain_of(job: JobConfig) -> list[str]:
    """Names of the gradient's transforms, in their order."""
    return [brief(config.name) for config in transform_configs(job.gradients)]


def gradient_warnings(job: JobConfig) -> list[str]:
    """One line for each transform of the gradient that does not do what it seems to, with this job's other parts."""
    lines = []
    gradients, optimizer = job.gradients, job.optimizer
    if gradients.scaler is not None and not optimizer.keeps_scale:
        lines.append(factor_is_lost(optimizer))
    if gradients.teacher is not None and not optimizer.keeps_scale:
        lines.append(
            f"gradients.teacher: {brief(optimizer.name)} divides by the gradient's size, its noise included: "
            "the step is not that of a small batch"
        )
    if gradients.teacher is not None and job.partition.deals_by != "samples" and not job.partition.is_reshuffled:
        lines.append(
            f"gradients.teacher: under partition {job.partition.title} clients differ by more than their samples' "
            "noise, and the teacher takes their bias for noise"
        )
    return lines


def factor_is_lost(optimizer: OptimizerConfig) -> str:
    """A warning for a scaler with an optimizer that normalises its gradient."""
    part = parse_name(optimizer.name)
    if part is not None:
        return (
            f"gradients.scaler: {part.brief} does not say that it keeps a gradient's scale (keeps_scale = True in its "
            "Config): the factor may hardly act"
        )
    return f"gradients.scaler: {optimizer.name} divides by the gradient's size, the factor hardly acts"
