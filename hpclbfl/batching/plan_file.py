"""plan.yaml: what `hpclbfl plan` found out, and whether it is about the job at hand. Loads no torch by itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints

from hpclbfl.batching.cost_model import BentLine, Line
from hpclbfl.config.job import MAX_PLAN_BYTES, JobConfig
from hpclbfl.config.sections import Section
from hpclbfl.config.sections.base import LARGEST, NonNegativeFloat, NonNegativeInt, Number, PositiveFloat, PositiveInt
from hpclbfl.config.validation import validated
from hpclbfl.core.cpu import cpu_model
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.files import prepare_output
from hpclbfl.core.launched import launched_rank
from hpclbfl.core.text import printable, shown
from hpclbfl.core.yamlfile import read_mapping, write_sealed
from hpclbfl.core.yamltext import dump

VERSION = 1
TOLERATED = 0.2
"""Largest relative error of a prediction, at sizes that the fit has not seen, that needs no warning."""
_HEADER = "# Written by `hpclbfl plan`. Read by a job that says  batching: {policy: proportional, from: THIS FILE}\n"
_LOCAL_RANK = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PMI_LOCAL_RANK", "SLURM_LOCALID")


def _not_negative(value: float) -> float:
    if not 0.0 <= value <= LARGEST:
        raise ValueError("should be 0 or more (run hpclbfl plan again)")
    return value


Fitted = Annotated[Number, AfterValidator(_not_negative)]
"""A part of a line. Older versions fitted negative ones, too, by which no work can be shared."""
WarningText = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class LineFit(Section):
    """A straight line: value = fixed + per_sample * batch."""

    fixed: Fitted
    per_sample: Fitted


class MemoryPlan(Section):
    """Eq. 3 for one rank, bytes."""

    limit_bytes: PositiveInt
    """Of the device, or as asked for; of a CPU, the rank's share of what is free."""
    margin: Number
    """Part of the limit that is left free."""
    model_bytes: NonNegativeInt
    gradient_bytes: NonNegativeInt
    optimizer_bytes: NonNegativeInt
    activation: LineFit
    """What the forward pass keeps for the backward pass."""
    batch: LineFit
    """Images and labels, and the buffers that they are made in."""
    total: LineFit
    """Peak of a whole step: all of these, work space and, on a CPU, program and decoded images; straight from
    `total_from_batch` on."""
    total_from_batch: PositiveInt
    reserved_bytes: NonNegativeInt = 0
    """What the communication library takes beyond the probes."""


class RankPlan(Section):
    """What one rank's device can do with a client of the job."""

    device: str
    """Its name, which training must find again."""
    max_batch: PositiveInt
    """Largest permissible batch, samples."""
    t_fixed_s: Fitted
    t_per_sample_s: PositiveFloat
    """t = t_fixed_s + t_per_sample_s * batch: loading, forward, backward and update (Eq. 2 without t_sync)."""
    rank: NonNegativeInt = 0
    threads: PositiveInt | None = None
    """CPU: threads that computed."""
    slowdown: Number = 1.0
    """As `emulate` has it; in the times already."""
    bound: str = "memory"
    """What bounds max_batch: memory, data (the size of the training set) or time (`--max-step`)."""
    is_verified: bool = False
    """max_batch was run, and where memory bounds it, the next probe above failed."""
    failed_batch: PositiveInt | None = None
    """Smallest batch that was tried and ran out of memory."""
    num_clients: PositiveInt = 1
    """That the rank holds; times and batch sizes are of each."""
    best_batch: PositiveInt | None = None
    """Smallest batch whose epoch is within 1 % of the shortest one."""
    local_batch_size: PositiveInt | None = None
    """The rank's share of the job's global batch, proportional to its speed; the job's own with more clients than
    ranks."""
    t_straight_from: PositiveInt = 1
    """Batch from which on the line holds; below, times lie on the straight lines between `t_below_s`."""
    t_below_s: tuple[tuple[PositiveInt, PositiveFloat], ...] = ()
    """Batch, seconds."""
    t_c: LineFit | None = None
    """The part of it that is forward, backward and update, s."""
    t_mov: LineFit | None = None
    """The part of it that is loading and moving, s."""
    memory: MemoryPlan | None = None

    def seconds(self, batch: int) -> float:
        """Time of a step with this batch size, without t_sync, s."""
        return BentLine(Line(self.t_fixed_s, self.t_per_sample_s), self.t_straight_from, self.t_below_s)(batch)


class NetworkPlan(Section):
    """Ring: t = 2 (n - 1) (hop_s + bytes / (n * bandwidth)); fitted on `num_ranks` ranks."""

    num_ranks: PositiveInt
    engine: str
    hop_s: NonNegativeFloat
    """Latency of one of the ring's 2 (n - 1) steps, s."""
    bandwidth_bytes_per_s: PositiveFloat
    num_bytes: PositiveInt
    """What the job reduces at once: gradients, or the parameters and buffers that are averaged."""

    def seconds(self, num_ranks: int, num_bytes: float | None = None) -> float:
        """Time of a reduction of `num_bytes` (None: the job's) over so many ranks, s."""
        size = self.num_bytes if num_bytes is None else num_bytes
        hops = 2 * (num_ranks - 1)
        return hops * (self.hop_s + size / (num_ranks * self.bandwidth_bytes_per_s))


class Plan(Section):
    """All ranks' devices and the links between them, for one kind of job."""

    ranks: tuple[RankPlan, ...] = Field(min_length=1)
    job: dict[str, Any]
    """What the plan is about; see `identity`."""
    num_train: PositiveInt | None = None
    global_batch_size: PositiveInt | None = None
    local_steps: PositiveInt = 1
    """H."""
    network: NetworkPlan | None = None
    """Only from a plan of several ranks."""
    fits: dict[str, Any] = Field(default_factory=dict)
    """Errors of the predictions at batch sizes that the fits have not seen: by quantity, median and worst, relative."""
    warnings: tuple[WarningText, ...] = Field(default=(), max_length=100)
    """Quantities with an error above TOLERATED; a run that shares its work by the plan repeats them."""
    made: dict[str, Any] = Field(default_factory=dict)
    """When, where and with what."""
    version: NonNegativeInt = VERSION
    path: str = Field(default="plan.yaml", exclude=True)
    """Where it was read from; for errors."""

    def doubts(self) -> str:
        """Its warnings in one line; empty without any."""
        if not self.warnings:
            return ""
        return f"held-out errors above {100 * TOLERATED:.0f} %: {', '.join(self.warnings)}"


def identity(job: JobConfig) -> dict[str, Any]:
    """What memory and times depend on: net, precision, optimizer, what samples are like, how the model is kept."""
    data = job.data.hashed(job.data.model_dump(mode="json", exclude={"limit"}))
    if job.data.file_name is not None:
        # The path itself may differ from node to node.
        data["file"] = job.data.file_name
    return {
        "model": job.model.model_dump(mode="json"),
        "data": data,
        "precision": job.precision,
        "optimizer": {"name": job.optimizer.name, "momentum": job.optimizer.has_momentum},
        "training": "a model per client" if job.sync.trains_alone else "shared model",
    }


def device_name(environ: Mapping[str, str] = os.environ) -> str:
    """Name of the rank's device: its GPU where torch is loaded and finds one, else the processor."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        local_rank = next((int(environ[name]) for name in _LOCAL_RANK if name in environ), 0)
        return str(torch.cuda.get_device_name(local_rank % torch.cuda.device_count()))
    return cpu_model() or "CPU"


def save_plan(plan: Plan, path: Path) -> None:
    """Write plan.yaml, whole or not at all.

    Raises:
        EnvironmentFault: it cannot be written.
    """
    prepare_output(path)
    write_sealed(path, _HEADER + dump(plan.model_dump(mode="json", exclude_none=True), width=120))


def load_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        ConfigError: the file cannot be read, was changed, or is no plan of this version; one line that names it.
    """
    try:
        values = read_mapping(path, "not a plan", MAX_PLAN_BYTES)
    except ConfigError as error:
        raise ConfigError(f"{error}; make one: hpclbfl plan JOB.yaml") from error
    if "ranks" not in values:
        raise ConfigError(f"{printable(path)}: not a plan; make one: hpclbfl plan JOB.yaml")
    if values.get("version", VERSION) != VERSION:
        version = shown(values["version"])
        raise ConfigError(f"{printable(path)}: a plan of version {version}, not {VERSION}: run hpclbfl plan again")
    return validated(Plan, {**values, "path": str(path)}, str(path))


def check_plan(plan: Plan, job: JobConfig, num_ranks: int, device: str | None = None, rank: int | None = None) -> None:
    """Refuse a plan of another job, number of ranks or device; every rank looks at its own device.

    Args:
        device: of this rank; None: as `device_name` finds it.
        rank: None: as the launcher tells it.

    Raises:
        ConfigError: one line that says what differs.
    """
    again = "run hpclbfl plan again, as this job is to run"
    if len(plan.ranks) != num_ranks:
        raise ConfigError(f"{plan.path}: made on {_ranks(len(plan.ranks))}, this job has {_ranks(num_ranks)}: {again}")
    wanted, made = identity(job), plan.job
    for section, value in wanted.items():
        old = made.get(section)
        if old == value:
            continue
        if isinstance(value, dict) and isinstance(old, dict):
            key = next(k for k in (*value, *old) if value.get(k) != old.get(k))
            section, old, value = f"{section}.{key}", old.get(key), value.get(key)
        raise ConfigError(f"{plan.path}: made for {section} {old}, this job has {value}: {again}")
    rank = launched_rank(os.environ) if rank is None else rank
    here, there = device or device_name(), plan.ranks[rank].device
    if there != here:
        raise ConfigError(f"{plan.path}: rank {rank} was measured on {there}, this is {here}: {again}")


def _ranks(number: int) -> str:
    return f"{number} rank{'s' if number != 1 else ''}"
