"""plan.yaml: the measurements of `hpclbfl plan`, and the check that they apply to a job. Does not load torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints

from hpclbfl.batching.cost_model import BentLine, Line
from hpclbfl.comm.compression.volume import Volume
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
"""Largest relative error of a prediction at held-out batch sizes without a warning."""
_HEADER = "# Written by `hpclbfl plan`. Read by a job that says  batching: {policy: proportional, from: THIS FILE}\n"
_LOCAL_RANK = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PMI_LOCAL_RANK", "SLURM_LOCALID")


def _not_negative(value: float) -> float:
    if not 0.0 <= value <= LARGEST:
        raise ValueError("should be 0 or more (run hpclbfl plan again)")
    return value


Fitted = Annotated[Number, AfterValidator(_not_negative)]
"""A coefficient of a line. Older versions could also fit negative ones, which cannot be used to share work."""
WarningText = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class LineFit(Section):
    """A line: value = fixed + per_sample * batch."""

    fixed: Fitted
    per_sample: Fitted


class MemoryPlan(Section):
    """The memory model (Eq. 3) of one rank, bytes."""

    limit_bytes: PositiveInt
    """Of the device, or as requested; of a CPU, the rank's share of the free memory."""
    margin: Number
    """Fraction of the limit that is left free."""
    model_bytes: NonNegativeInt
    gradient_bytes: NonNegativeInt
    optimizer_bytes: NonNegativeInt
    activation: LineFit
    """Kept by the forward pass for the backward pass."""
    batch: LineFit
    """Images, labels, and the buffers in which they are prepared."""
    total: LineFit
    """Peak of a whole step: all of these, workspace and, on a CPU, program and decoded images; linear from
    `total_from_batch` on."""
    total_from_batch: PositiveInt
    reserved_bytes: NonNegativeInt = 0
    """Used by the communication library, which the probes do not load."""


class RankPlan(Section):
    """The measurements of one rank's device with a client of the job."""

    device: str
    """Its name; training requires a device of the same name."""
    max_batch: PositiveInt
    """Largest possible batch, samples."""
    t_fixed_s: Fitted
    t_per_sample_s: PositiveFloat
    """t = t_fixed_s + t_per_sample_s * batch: loading, forward, backward and update (Eq. 2 without t_sync)."""
    rank: NonNegativeInt = 0
    threads: PositiveInt | None = None
    """Compute threads of a CPU."""
    slowdown: Number = 1.0
    """From `emulate`; already included in the times."""
    bound: str = "memory"
    """What limits max_batch: memory, data (the size of the training set) or time (`--max-step`)."""
    is_verified: bool = False
    """Whether max_batch was run and, if memory limits it, the next larger probe failed."""
    failed_batch: PositiveInt | None = None
    """Smallest batch that ran out of memory."""
    num_clients: PositiveInt = 1
    """Clients of the rank; times and batch sizes are per client."""
    best_batch: PositiveInt | None = None
    """Smallest batch whose epoch time is within 1 % of the shortest."""
    local_batch_size: PositiveInt | None = None
    """The rank's share of the job's global batch, proportional to its speed; the job's own size if there are more
    clients than ranks."""
    t_straight_from: PositiveInt = 1
    """Batch from which on the line holds; below, times are interpolated between `t_below_s`."""
    t_below_s: tuple[tuple[PositiveInt, PositiveFloat], ...] = ()
    """Batch, seconds."""
    t_c: LineFit | None = None
    """Part of the time: forward, backward and update, s."""
    t_mov: LineFit | None = None
    """Part of the time: loading and moving, s."""
    memory: MemoryPlan | None = None

    def seconds(self, batch: int) -> float:
        """Time of a step at this batch size without t_sync, s."""
        return BentLine(Line(self.t_fixed_s, self.t_per_sample_s), self.t_straight_from, self.t_below_s)(batch)


class NetworkPlan(Section):
    """Ring allreduce: t = 2 (n - 1) (hop_s + bytes / (n * bandwidth)), fitted on `num_ranks` ranks."""

    num_ranks: PositiveInt
    engine: str
    hop_s: NonNegativeFloat
    """Latency of one of the ring's 2 (n - 1) steps, s."""
    bandwidth_bytes_per_s: PositiveFloat
    num_bytes: PositiveInt
    """Size of the job's reductions: gradients, or the parameters and buffers that are averaged."""
    gathered_bytes: NonNegativeFloat = 0.0
    """Of each client's payload, where a compressor gathers them if that sends less; 0: it does not."""

    def seconds(self, num_ranks: int, num_bytes: float | None = None) -> float:
        """Time of a reduction of `num_bytes` (None: the job's) over this number of ranks, s."""
        size = Volume(self.num_bytes, self.gathered_bytes).on(num_ranks) if num_bytes is None else num_bytes
        hops = 2 * (num_ranks - 1)
        return hops * (self.hop_s + size / (num_ranks * self.bandwidth_bytes_per_s))


class Plan(Section):
    """The devices of all ranks and the network between them, for one kind of job."""

    ranks: tuple[RankPlan, ...] = Field(min_length=1)
    job: dict[str, Any]
    """See `job_fingerprint`."""
    num_train: PositiveInt | None = None
    global_batch_size: PositiveInt | None = None
    local_steps: PositiveInt = 1
    """H."""
    network: NetworkPlan | None = None
    """None for a plan of a single rank."""
    fits: dict[str, Any] = Field(default_factory=dict)
    """Median and largest relative error of the predictions at held-out batch sizes, by quantity."""
    warnings: tuple[WarningText, ...] = Field(default=(), max_length=100)
    """Quantities with an error above TOLERATED; repeated by a run that uses the plan."""
    made: dict[str, Any] = Field(default_factory=dict)
    """Time, machine and software."""
    version: NonNegativeInt = VERSION
    path: str = Field(default="plan.yaml", exclude=True)
    """The file, for messages."""

    def doubts(self) -> str:
        """Its warnings on one line; empty if there are none."""
        if not self.warnings:
            return ""
        return f"held-out errors above {100 * TOLERATED:.0f} %: {', '.join(self.warnings)}"


def job_fingerprint(job: JobConfig) -> dict[str, Any]:
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
    """Name of the rank's device: its GPU if torch is loaded and finds one, else the processor."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        local_rank = next((int(environ[name]) for name in _LOCAL_RANK if name in environ), 0)
        return str(torch.cuda.get_device_name(local_rank % torch.cuda.device_count()))
    return cpu_model() or "CPU"


def save_plan(plan: Plan, path: Path) -> None:
    """Write plan.yaml atomically. Raises EnvironmentFault."""
    prepare_output(path)
    write_sealed(path, _HEADER + dump(plan.model_dump(mode="json", exclude_none=True), width=120))


def load_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        ConfigError: the file cannot be read, was changed, or is not a plan of this version; one line that names it.
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
    """Refuse a plan for another job, number of ranks or device; each rank checks its own device.

    Args:
        plan: the plan.
        job: the job that is to use it.
        num_ranks: of this run.
        device: of this rank; None: see `device_name`.
        rank: this rank; None: as the launcher sets it.

    Raises:
        ConfigError: one line that says what differs.
    """
    again = "run hpclbfl plan again, as this job is to run"
    if len(plan.ranks) != num_ranks:
        raise ConfigError(f"{plan.path}: made on {_ranks(len(plan.ranks))}, this job has {_ranks(num_ranks)}: {again}")
    wanted, made = job_fingerprint(job), plan.job
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
