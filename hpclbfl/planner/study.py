"""All probes of one rank's device, and the lines through them."""

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
from hpclbfl.planner.memory import MARGIN, Check, PeakProbes, Permissible, find_largest, fit_peak
from hpclbfl.planner.runner import Probe
from hpclbfl.planner.store import ProbeRow, Role

FUSION_BYTES = 128 * 2**20
"""Horovod's buffer, unless HOROVOD_FUSION_THRESHOLD says otherwise."""
_LONG_STEP_S = 8.0
"""Steps that take longer are probed once, shorter ones twice, in which memory is laid out as it stays, nearly."""
_WORK = 1.2
"""Peak of a step over what it saves for the backward pass, about: where to begin."""


@dataclass(frozen=True)
class Options:
    """How thoroughly to probe, and within which limits."""

    memory_limit: int | None = None
    """Bytes; None: what the job emulates, else what there is."""
    budget_s: float = 60.0
    """For timing steps, about."""
    min_rounds: int = 2
    """Of timing, whatever they take; in each, a batch size has several steps."""
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
    """What was found out about one rank's device."""

    plan: RankPlan
    rows: tuple[ProbeRow, ...]
    num_train: int
    fingerprint: str
    sample_text: str
    parameter_bytes: int
    buffer_bytes: int


@dataclass
class DeviceProfiler:
    """Probes a rank's device.

    Args:
        job: resolved.
        probe: carries out requests: `hpclbfl.planner.runner.run_probe`, or one that stays in this process.
        say: gets a line about what comes next.
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
        """Take all probes.

        Raises:
            RunFailed: not even a small batch fits into memory.
            ConfigError: the job cannot be run.
        """
        told, times = self._times()
        limit = self.wanted or told["free_bytes"] or self.watched
        m_batch = self._batch_memory(told, limit)
        activation = _sizes(told["activation"])
        m_act = fit_line({batch: activation[batch] for batch in told["fitted"]})
        self._add("m_act_bytes", [(batch, 0, size) for batch, size in activation.items()], m_act, told["fitted"])
        largest, failed = self._peak(told, times, limit, _WORK * m_act.per_sample + m_batch.per_sample)
        memory = MemoryPlan(
            limit_bytes=limit,
            margin=MARGIN,
            model_bytes=told["model"],
            gradient_bytes=told["gradient"],
            optimizer_bytes=told["optimizer"],
            activation=_line(m_act),
            batch=_line(m_batch),
            total=_line(largest.peak.line),
            total_from_batch=largest.peak.straight_from,
            reserved_bytes=self.reserved,
        )
        return Study(
            plan=self._rank_plan(told, times, largest, memory).model_copy(update={"failed_batch": failed}),
            rows=tuple(self.rows),
            num_train=told["num_train"],
            fingerprint=told["fingerprint"],
            sample_text=told["sample_text"],
            parameter_bytes=told["parameter_bytes"],
            buffer_bytes=told["buffer_bytes"],
        )

    def _times(self) -> tuple[dict[str, Any], TimeFit]:
        self.say("timing steps of many batch sizes")
        request = {"budget_s": self.options.budget_s, "min_rounds": self.options.min_rounds, "min_top": self.usual}
        told = self._ask("times", "a small batch", request)
        rows = [TimeRow(b, r, t_mov * self.slowdown, t_c * self.slowdown) for b, r, t_mov, t_c in told["rows"]]
        fit = fit_times(rows, told["fitted"])
        self._add("t_c_s", [(r.batch, r.repetition, r.t_c_s) for r in rows], fit.t_c, told["fitted"])
        self._add("t_mov_s", [(r.batch, r.repetition, r.t_mov_s) for r in rows], fit.t_mov, told["fitted"])
        both = [(r.batch, r.repetition, r.t_c_s + r.t_mov_s) for r in rows]
        self._add("t_local_s", both, fit.step, told["fitted"])
        return told, fit

    def _batch_memory(self, told: dict[str, Any], limit: int) -> Line:
        self.say("measuring the memory of batches")
        input_bytes = told["input_bytes"]
        # In two buffers, and as the net takes it; of images a byte is a number.
        sample_bytes = input_bytes * (2 + (8 if self.job.precision == "float64" else 4))
        room = (1 - MARGIN) * min(self.watched - told["host_bytes"], limit)
        loaded, too_large = loaded_sizes(sample_bytes, room)
        for batch in too_large:
            needed, left = shown_size(batch * sample_bytes), shown_size(max(0, room))
            self.say(f"a batch of {batch} is not loaded: it takes {needed}, and {left} are left")
        order = load_order(loaded, input_bytes, self.options.repetitions)
        request = {"batches": order, "in_memory": told["in_memory"]}
        found = self._ask("batches", "loading", request, plain_allocator=True)
        rows = [(batch, repetition, float(size)) for batch, repetition, size in found["rows"]]
        sizes = medians((batch, size) for batch, _, size in rows)
        for batch in [batch for batch in loaded if sizes[batch] <= 0]:
            self.say(f"the memory of a batch of {batch} is too little to be seen")
            rows = [row for row in rows if row[0] != batch]
        fitted = [batch for batch in fitted_sizes(loaded) if sizes[batch] > 0]
        line = fit_line({batch: sizes[batch] for batch in fitted}) if fitted else Line(0.0, float(sample_bytes))
        self._add("m_batch_bytes", rows, line, fitted)
        return line

    def _peak(
        self, told: dict[str, Any], times: TimeFit, limit: int, per_sample: float
    ) -> tuple[Permissible, int | None]:
        """The largest batch, and the smallest that failed."""
        self.say("probing the peak memory of steps")
        # The probes open fewer images than a run keeps in memory.
        missing = told["missing_bytes"]
        watched = self.watched if self.place.is_gpu else limit - self.reserved - missing
        by_time = times.step.line.batch_of(self.options.max_step_s * self.slowdown)
        by_time = max(by_time, 2 * self.usual, times.batches[-1])
        most, most_is = min((told["num_train"], "data"), (by_time, "time"))
        room = limit - self.reserved - missing - told["start_bytes"] - told["gradient"] - told["optimizer"]
        guess = max(1, int(room / per_sample))
        num_steps = 1 if times.step(min(guess, most)) > _LONG_STEP_S * self.slowdown else 2

        def measure(batch: int) -> float | None:
            request = {"batch": batch, "num_steps": num_steps, "num_clients": self.num_clients}
            outcome = self.probe({**self._common("peak"), **request}, watched, False)
            return None if outcome.answer is None else float(outcome.answer["peak_bytes"])

        probes = PeakProbes(measure, limit - self.reserved)
        # The largest timed batch fits; what else the process holds may make the guess too small.
        peak = fit_peak(probes, max(guess // 2, times.batches[-1]), most)
        top = probes.largest
        checks = [
            Check(batch, peak(batch), probes.points[batch])
            for batch in (3 * top // 8, 3 * top // 4)
            if batch not in probes.points and batch >= peak.straight_from and probes.fits(batch)
        ]
        self.say("running the largest batch")
        largest = find_largest(probes, peak, most, most_is)
        checks += largest.checks
        foretold = {check.batch: check.predicted for check in checks}
        for batch, size in sorted(probes.points.items()):
            role: Role = "held_out" if batch in foretold else "fit"
            predicted = foretold.get(batch, largest.peak(batch))
            self.rows.append(ProbeRow("m_total_bytes", batch, 0, size, predicted, role, self.place.rank))
        for batch in sorted(probes.failed):
            predicted = largest.peak(batch)
            self.rows.append(ProbeRow("m_total_bytes", batch, 0, math.nan, predicted, "failed", self.place.rank))
        return largest, probes.bound

    def _rank_plan(self, told: dict[str, Any], times: TimeFit, largest: Permissible, memory: MemoryPlan) -> RankPlan:
        step = times.step
        return RankPlan(
            rank=self.place.rank,
            device=told["device"],
            threads=told["threads"],
            slowdown=self.slowdown,
            max_batch=largest.max_batch,
            bound=largest.bound,
            is_verified=largest.is_verified,
            num_clients=self.num_clients,
            best_batch=best_batch(times, told["num_train"], largest.max_batch),
            t_fixed_s=step.line.fixed,
            # A device that no batch keeps busy has a flat line.
            t_per_sample_s=max(step.line.per_sample, 1e-12),
            t_straight_from=step.straight_from,
            t_below_s=step.below,
            t_c=_line(times.t_c.line),
            t_mov=_line(times.t_mov.line),
            memory=memory,
        )

    def _common(self, kind: str) -> dict[str, Any]:
        place = self.place
        return {
            "kind": kind,
            "job": self.job.model_dump(mode="json"),
            "parts": part_texts(self.job.model_dump(mode="json")),
            "local_rank": place.local_rank,
            "local_size": place.local_size,
            "sharing": place.sharing,
            "limit_bytes": self.wanted if place.is_gpu else self.watched,
        }

    def _ask(self, kind: str, what: str, more: dict[str, Any], plain_allocator: bool = False) -> dict[str, Any]:
        outcome = self.probe({**self._common(kind), **more}, self.watched, plain_allocator)
        if outcome.answer is None:
            limit = shown_size(self.wanted or self.watched)
            raise RunFailed(f"memory: {what} runs out of {limit} on rank {self.place.rank}: give it more")
        return outcome.answer

    def _add(
        self, quantity: str, rows: Iterable[tuple[int, int, float]], predict: Line | BentLine, fitted: Iterable[int]
    ) -> None:
        """Keep (batch, repetition, measured) beside what the fit has."""
        used = set(fitted)
        for batch, repetition, measured in rows:
            role: Role = "fit" if batch in used else "held_out"
            self.rows.append(ProbeRow(quantity, batch, repetition, measured, predict(batch), role, self.place.rank))


def _sizes(by_batch: dict[Any, Any]) -> dict[int, float]:
    """JSON has texts for keys."""
    return {int(batch): float(size) for batch, size in by_batch.items()}


def _line(line: Line) -> LineFit:
    return LineFit(fixed=line.fixed, per_sample=line.per_sample)
