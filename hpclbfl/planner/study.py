"""All probes of one rank's device, and the lines fitted to them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from hpclbfl.algorithms.emulate import emulated_limit, emulated_slowdown
from hpclbfl.algorithms.rank import clients_of_rank
from hpclbfl.batching.cost_model import BentLine, Line, fit_line, medians
from hpclbfl.batching.plan_file import LineFit, MemoryPlan, RankPlan
from hpclbfl.config.job import JobConfig
from hpclbfl.config.own_parts import part_texts
from hpclbfl.core.errors import RunFailed
from hpclbfl.core.memory import free_memory, shown_size
from hpclbfl.planner.compute import TimeFit, TimeRow, best_batch, fit_times
from hpclbfl.planner.loading import fitted_sizes, load_order, loaded_sizes
from hpclbfl.planner.memory import MARGIN, PeakProbes, Permissible, find_largest, fit_peak
from hpclbfl.planner.runner import Gathered, Probe
from hpclbfl.planner.store import ProbeRow, Role

FUSION_BYTES = 128 * 2**20
"""Horovod's fusion buffer, unless HOROVOD_FUSION_THRESHOLD is set."""
_LONG_STEP_S = 8.0
"""Longer steps are probed once, shorter ones twice: the second has almost the final memory layout."""
_WORK = 1.2
"""Typical peak of a step over what it saves for the backward pass; where the search begins."""


@dataclass(frozen=True)
class Options:
    """How thoroughly to probe, and within which limits."""

    memory_limit: int | None = None
    """Bytes; None: the job's emulated limit, else the device's free memory."""
    budget_s: float = 60.0
    """Approximate time for timing steps."""
    min_rounds: int = 2
    """Rounds of timing regardless of the budget; in each, a batch size has several steps."""
    max_step_s: float = 10.0
    """A batch whose step would take longer is not tried, unless the job asks for it."""
    repetitions: int = 3
    """Of batch memory; see `load_order`."""


@dataclass(frozen=True)
class Place:
    """The rank that is studied."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    engine: str = "local"
    is_gpu: bool = False
    sharing: int = 1
    """Ranks that compute on this rank's GPU."""


@dataclass(frozen=True)
class Study:
    """Results of one rank's device."""

    plan: RankPlan
    rows: tuple[ProbeRow, ...]
    gathered: Gathered


@dataclass
class DeviceProfiler:
    """Probes a rank's device.

    Args:
        job: resolved.
        probe: carries out requests: `hpclbfl.planner.runner.run_probe`, or one that stays in this process.
        say: is called with a line about what comes next.
    """

    job: JobConfig
    place: Place
    probe: Probe
    options: Options
    say: Callable[[str], None] = lambda line: None
    rows: list[ProbeRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        place, emulate = self.place, self.job.emulate
        self.slowdown = emulated_slowdown(emulate, place.rank, place.size)
        wanted = self.options.memory_limit
        self.wanted = emulated_limit(emulate) if wanted is None else wanted
        limits_host = self.wanted is not None and not place.is_gpu
        self.watched = self.wanted if limits_host and self.wanted else free_memory() // place.local_size
        """Resident memory at which a probe is killed, bytes."""
        self.num_clients = len(clients_of_rank(self.job.clients or 1, place.rank, place.size))
        self.usual = max(self.job.local_batch_sizes())
        """The job's largest local batch size, before speeds are known."""
        fusion = int(os.environ.get("HOROVOD_FUSION_THRESHOLD", FUSION_BYTES))
        self.reserved = fusion if place.engine == "horovod" else 0

    def run(self) -> Study:
        """Run all probes.

        Raises:
            RunFailed: not even a small batch fits into memory.
            ConfigError: the job cannot be run.
        """
        gathered, times = self._times()
        limit = self.wanted or gathered.free_bytes or self.watched
        m_batch = self._batch_memory(gathered, limit)
        activation = {batch: float(size) for batch, size in gathered.activation}
        m_act = fit_line({batch: activation[batch] for batch in gathered.fitted})
        self._add("m_act_bytes", [(batch, 0, size) for batch, size in activation.items()], m_act, gathered.fitted)
        largest = self._peak(gathered, times, limit, _WORK * m_act.per_sample + m_batch.per_sample)
        memory = MemoryPlan(
            limit_bytes=limit,
            margin=MARGIN,
            model_bytes=gathered.model,
            gradient_bytes=gathered.gradient,
            optimizer_bytes=gathered.optimizer,
            activation=_line(m_act),
            batch=_line(m_batch),
            total=_line(largest.peak.line),
            total_from_batch=largest.peak.straight_from,
            reserved_bytes=self.reserved,
        )
        step = times.step
        plan = RankPlan(
            rank=self.place.rank,
            device=gathered.device,
            threads=gathered.threads,
            slowdown=self.slowdown,
            max_batch=largest.max_batch,
            bound=largest.bound,
            is_verified=largest.is_verified,
            failed_batch=largest.failed_batch,
            num_clients=self.num_clients,
            best_batch=best_batch(times, gathered.num_train, largest.max_batch),
            t_fixed_s=step.line.fixed,
            # Where no batch keeps the device busy, the line is flat.
            t_per_sample_s=max(step.line.per_sample, 1e-12),
            t_straight_from=step.straight_from,
            t_below_s=step.below,
            t_c=_line(times.t_c.line),
            t_mov=_line(times.t_mov.line),
            memory=memory,
        )
        return Study(plan, tuple(self.rows), gathered)

    def _times(self) -> tuple[Gathered, TimeFit]:
        self.say("timing steps of many batch sizes")
        request = {"budget_s": self.options.budget_s, "min_rounds": self.options.min_rounds, "min_top": self.usual}
        gathered = Gathered(**self._answer("times", "a small batch", request))
        rows = [TimeRow(b, r, t_mov * self.slowdown, t_c * self.slowdown) for b, r, t_mov, t_c in gathered.rows]
        fit = fit_times(rows, gathered.fitted)
        self._add("t_c_s", [(r.batch, r.repetition, r.t_c_s) for r in rows], fit.t_c, gathered.fitted)
        self._add("t_mov_s", [(r.batch, r.repetition, r.t_mov_s) for r in rows], fit.t_mov, gathered.fitted)
        both = [(r.batch, r.repetition, r.t_c_s + r.t_mov_s) for r in rows]
        self._add("t_local_s", both, fit.step, gathered.fitted)
        return gathered, fit

    def _batch_memory(self, gathered: Gathered, limit: int) -> Line:
        self.say("measuring the memory of batches")
        input_bytes = gathered.input_bytes
        # In two buffers, and as the net takes it; of images a byte is a number.
        sample_bytes = input_bytes * (2 + (8 if self.job.precision == "float64" else 4))
        room = (1 - MARGIN) * min(self.watched - gathered.host_bytes, limit)
        loaded, too_large = loaded_sizes(sample_bytes, room)
        for batch in too_large:
            needed, left = shown_size(batch * sample_bytes), shown_size(max(0, room))
            self.say(f"a batch of {batch} is not loaded: it takes {needed}, and {left} are left")
        order = load_order(loaded, input_bytes, self.options.repetitions)
        request = {"batches": order, "in_memory": gathered.in_memory}
        found = self._answer("batches", "loading", request, plain_allocator=True)
        rows = [(batch, repetition, float(size)) for batch, repetition, size in found["rows"]]
        sizes = medians((batch, size) for batch, _, size in rows)
        for batch in [batch for batch in loaded if sizes[batch] <= 0]:
            self.say(f"the memory of a batch of {batch} is too small to be measured")
            rows = [row for row in rows if row[0] != batch]
        fitted = [batch for batch in fitted_sizes(loaded) if sizes[batch] > 0]
        line = fit_line({batch: sizes[batch] for batch in fitted}) if fitted else Line(0.0, float(sample_bytes))
        self._add("m_batch_bytes", rows, line, fitted)
        return line

    def _peak(self, gathered: Gathered, times: TimeFit, limit: int, per_sample: float) -> Permissible:
        self.say("probing the peak memory of steps")
        # The probes open fewer images than a run keeps in memory.
        available = limit - self.reserved - gathered.missing_bytes
        by_time = times.step.line.batch_of(self.options.max_step_s * self.slowdown)
        by_time = max(by_time, 2 * self.usual, times.batches[-1])
        most, most_is = min((gathered.num_train, "data"), (by_time, "time"))
        room = available - gathered.start_bytes - gathered.gradient - gathered.optimizer
        guess = max(1, int(room / per_sample))
        num_steps = 1 if times.step(min(guess, most)) > _LONG_STEP_S * self.slowdown else 2

        def measure(batch: int) -> float | None:
            request = {"batch": batch, "num_steps": num_steps, "num_clients": self.num_clients}
            watched = self.watched if self.place.is_gpu else available
            outcome = self.probe({**self._common("peak"), **request}, watched, False)
            return None if outcome.answer is None else float(outcome.answer["peak_bytes"])

        probes = PeakProbes(measure, limit - self.reserved)
        # The largest timed batch fits; what else the process holds may make the guess too small.
        peak = fit_peak(probes, max(guess // 2, times.batches[-1]), most)
        top = probes.largest
        predictions = {
            batch: peak(batch)
            for batch in (3 * top // 8, 3 * top // 4)
            if batch not in probes.points and batch >= peak.straight_from and probes.fits(batch)
        }
        self.say("running the largest batch")
        largest = find_largest(probes, peak, most, most_is)
        predictions |= largest.predictions
        for batch, size in sorted(probes.points.items()):
            role: Role = "held_out" if batch in predictions else "fit"
            predicted = predictions.get(batch, largest.peak(batch))
            self.rows.append(ProbeRow("m_total_bytes", batch, 0, size, predicted, role, self.place.rank))
        for batch in sorted(probes.failed):
            predicted = largest.peak(batch)
            self.rows.append(ProbeRow("m_total_bytes", batch, 0, math.nan, predicted, "failed", self.place.rank))
        return largest

    def _common(self, kind: str) -> dict[str, Any]:
        place, job = self.place, self.job.model_dump(mode="json")
        return {
            "kind": kind,
            "job": job,
            "parts": part_texts(job),
            "local_rank": place.local_rank,
            "local_size": place.local_size,
            "sharing": place.sharing,
            "limit_bytes": self.wanted if place.is_gpu else self.watched,
        }

    def _answer(self, kind: str, what: str, more: dict[str, Any], plain_allocator: bool = False) -> dict[str, Any]:
        outcome = self.probe({**self._common(kind), **more}, self.watched, plain_allocator)
        if outcome.answer is None:
            limit = shown_size(self.wanted or self.watched)
            raise RunFailed(f"memory: {what} runs out of {limit} on rank {self.place.rank}: give it more")
        return outcome.answer

    def _add(
        self, quantity: str, rows: Iterable[tuple[int, int, float]], predict: Line | BentLine, fitted: Iterable[int]
    ) -> None:
        """Keep (batch, repetition, measured) with the prediction of the fit."""
        used = set(fitted)
        for batch, repetition, measured in rows:
            role: Role = "fit" if batch in used else "held_out"
            self.rows.append(ProbeRow(quantity, batch, repetition, measured, predict(batch), role, self.place.rank))


def _line(line: Line) -> LineFit:
    return LineFit(fixed=line.fixed, per_sample=line.per_sample)
