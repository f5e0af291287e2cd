"""A job file: YAML to a validated, frozen model, with overrides and a canonical hash.

Unknown keys and wrong types are refused with the file, the key and the valid ones. The hash covers only what changes
the result: not where data lie, which engine communicates, or how often a checkpoint is written.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PrivateAttr,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    StrictBool,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from hpclbfl.config.component_configs import transform_configs, with_components
from hpclbfl.config.detectors import check_detectors
from hpclbfl.config.migrate import as_former, with_compression, with_uncompressed, with_unnamed_loss
from hpclbfl.config.own_parts import NOWHERE, Lookup, as_written, pinned
from hpclbfl.config.own_sources import PARTS
from hpclbfl.config.part_names import anchored
from hpclbfl.config.sections import (
    AlgorithmConfig,
    BatchingConfig,
    CheckpointConfig,
    CommConfig,
    CompressionConfig,
    DataConfig,
    EmulateConfig,
    EvaluateConfig,
    GradientsConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    PartitionConfig,
    ScheduleConfig,
    Section,
    StopConfig,
)
from hpclbfl.config.sections.base import Name, Seed, Whole, path_fields
from hpclbfl.config.validation import validated
from hpclbfl.core.errors import ConfigError, DataError
from hpclbfl.core.files import read_bytes
from hpclbfl.core.text import printable, shown
from hpclbfl.core.yamlfile import parse_value, read_mapping, refuse_undone, set_value
from hpclbfl.core.yamltext import dump

MAX_CLIENTS = 1_000_000
MAX_PLAN_BYTES = 16_000_000
"""Of a plan file; each rank takes about 1,500."""
CONFIG = "config.yaml"
"""Of a run folder: the resolved job."""
JOB = "a job file is a mapping with 'data' and 'model'"


class JobConfig(Section):
    """A whole job file."""

    name: Annotated[Name, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$")] = "run"
    """Names the run folder and the run's rows in tables: letters, digits, spaces, dots, hyphens and underscores."""
    seed: Seed = 0
    """Of all random numbers: initial weights, shards, shuffling, augmentation, dropout."""
    clients: Annotated[Whole, Field(gt=0, le=MAX_CLIENTS)] | None = None
    """Number of federated participants; null: one per rank."""
    precision: Literal["float32", "float64", "bf16", "fp16"] = "float32"
    """bf16, fp16: autocast, on devices that support it; parameters stay in float32."""
    deterministic: StrictBool = False
    """On GPUs: use deterministic kernels only."""
    data: SerializeAsAny[DataConfig]
    partition: SerializeAsAny[PartitionConfig]
    model: SerializeAsAny[ModelConfig]
    sync: SerializeAsAny[AlgorithmConfig]
    gradients: GradientsConfig = GradientsConfig()
    compression: SerializeAsAny[CompressionConfig] | None = None
    """What clients send instead of their gradients or, where they train alone, of what they have changed."""
    optimizer: SerializeAsAny[OptimizerConfig]
    schedule: SerializeAsAny[ScheduleConfig]
    loss: SerializeAsAny[LossConfig]
    batching: SerializeAsAny[BatchingConfig]
    emulate: EmulateConfig | None = None
    stop: StopConfig = StopConfig(epochs=10)
    evaluate: EvaluateConfig = EvaluateConfig(every_epochs=1)
    on_nonfinite: Literal["stop", "skip", "restore", "ignore"] = "stop"
    """What to do about a gradient that is not finite. stop: end the run; skip: leave the step out; restore: go back to
    the last checkpoint, once; ignore: train on."""
    checkpoint: CheckpointConfig = CheckpointConfig(every_s=300)
    comm: CommConfig = CommConfig()
    _notes: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="before")
    @classmethod
    def _components(cls, values: Any, info: ValidationInfo) -> Any:
        if not isinstance(values, dict):
            return values
        context = info.context or {}
        values = with_compression(values)
        return with_components(values, str(context.get("source", "a job")), context.get("lookup", NOWHERE))

    @model_validator(mode="after")
    def _sections_fit(self) -> JobConfig:
        gradients = self.gradients
        self.sync.check(self)
        self.batching.check(self)
        transform_configs(gradients)
        check_detectors(self)
        if gradients.extrapolation_lr is not None and self.precision == "fp16":
            raise ValueError("gradients.extrapolation_lr does not go with precision fp16")
        if self.on_nonfinite in ("skip", "restore") and not gradients.measure:
            raise ValueError(f"on_nonfinite: {self.on_nonfinite} needs 'gradients.measure: true'")
        self._compression_fits()
        return self

    def _compression_fits(self) -> None:
        compression, gradients = self.compression, self.gradients
        if compression is None:
            return
        if gradients.noise_scale is not None:
            raise ValueError("gradients.noise_scale: needs exact sums of gradients, without 'compression'")
        if gradients.teacher is not None:
            raise ValueError("gradients.teacher: learns from exact sums of gradients, without 'compression'")
        if compression.keeps_residual and self.precision == "fp16" and self.sync.sums_gradients:
            raise ValueError(
                "compression.feedback: what is not sent lies in units of the loss scale, which changes under precision "
                "fp16; use bf16, or 'feedback: false'"
            )
        if compression.adapter is not None and not gradients.measure:
            raise ValueError("compression.adapt: needs 'gradients.measure: true'")

    @model_serializer(mode="wrap")
    def _without_default_compression(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Older versions had none, and their runs are found by what they wrote.
        values: dict[str, Any] = handler(self)
        if self.compression is None:
            values.pop("compression", None)
        return values

    @property
    def notes(self) -> tuple[str, ...]:
        """What its user should know of how it was read, a line each."""
        return self._notes

    def resolved(self, num_ranks: int) -> JobConfig:
        """The job with its number of clients; refuses a batch list of another length."""
        job = self if self.clients is not None else self.model_copy(update={"clients": num_ranks})
        sizes = job.batching.local_batch_size
        if isinstance(sizes, tuple) and len(sizes) != job.clients:
            raise ConfigError(
                f"batching.local_batch_size lists {len(sizes)} sizes for {job.clients} clients: give one per client"
            )
        return job

    def local_batch_sizes(self) -> list[int]:
        """b_c of every client, samples; their sum is B."""
        if self.clients is None:
            raise ConfigError("clients: not resolved; state a number")
        sizes, total = self.batching.local_batch_size, self.batching.global_batch_size
        if total is not None:
            if total < self.clients:
                raise ConfigError(
                    f"batching.global_batch_size: {total} is less than one sample for each of {self.clients} clients"
                )
            quotient, rest = divmod(total, self.clients)
            return [quotient + (c < rest) for c in range(self.clients)]
        return list(sizes) if isinstance(sizes, tuple) else [sizes or 1] * self.clients

    def scientific(self, data_fingerprint: str) -> dict[str, Any]:
        """What changes the result: the job without name, engine, paths and end, the data by their content.

        The end of the run is left out, so that a finished run can be given more steps. A schedule whose end comes from
        `stop` is resolved before: `hpclbfl.optim.schedule.with_end`.
        """
        return self._scientific(data_fingerprint, {"name", "comm", "checkpoint", "stop"})

    def _scientific(self, data_fingerprint: str, left_out: set[str]) -> dict[str, Any]:
        job = self.model_dump(mode="json", exclude=left_out)
        job["data"] = {**self.data.hashed(job["data"]), "fingerprint": data_fingerprint}
        source = self.batching.plan_file
        if source is not None:
            try:
                job["batching"]["from"] = hashlib.sha256(read_bytes(Path(source), MAX_PLAN_BYTES)).hexdigest()
            except FileNotFoundError as error:
                raise ConfigError(f"batching.from: {source} cannot be read: {error.strerror}") from error
            except DataError as error:
                raise ConfigError(f"batching.from: {error}") from error
        return job

    def digest(self, data_fingerprint: str) -> str:
        """Ten hexadecimal digits that identify this experiment."""
        return _hash(with_uncompressed(with_unnamed_loss(self.scientific(data_fingerprint))))

    def former_digest(self, data_fingerprint: str) -> str:
        """The digest of version 0.1, which covered `stop`: run folders of that time are named after it.

        Fixed i.i.d. shards, which it did not have, have no folder of that time.
        """
        return _hash(as_former(self._scientific(data_fingerprint, {"name", "comm", "checkpoint"})))

    def slug(self) -> str:
        """The name in a form that suits a folder."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    def to_yaml(self) -> str:
        """The whole job as a job file."""
        return dump(self.model_dump(mode="json"))

    def to_printed(self) -> str:
        """The same, for people: it can be read from any folder, as own parts are named by their files."""
        return dump(as_written(self.model_dump(mode="json")))


def _hash(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def load_job(
    path: Path, overrides: Iterable[str] | Mapping[str, Any] | None = None, run: Path | None = None
) -> JobConfig:
    """Read a job file and apply overrides: `key.path=value` texts (values are YAML), or values by key.

    Args:
        run: a run folder in which the job may go on, with the copies of own parts that it holds.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong; one line that names it.
    """
    values = read_mapping(path, JOB)
    given: list[str] = []
    for override in overrides or ():
        source = f"override {shown(override)}"
        key, value = (override, overrides[override]) if isinstance(overrides, Mapping) else _split(override, source)
        given.append(key)
        refuse_undone(given, source)
        set_value(values, key, value, source)
    values = anchored(values, path.parent, Path.cwd(), given)
    folders = [path.parent]
    notes: list[str] = []
    if run is not None and (run / PARTS).is_dir():
        # What is wrong with it is told once the folder is entered.
        with suppress(ConfigError):
            values, notes = pinned(values, read_mapping(run / CONFIG, JOB), run)
            folders.insert(0, run)
    job = with_paths(parse_job(values, str(path), Lookup(tuple(folders))), path.parent, Path.cwd(), given)
    job._notes = tuple(notes)
    return job


def parse_job(values: dict[str, Any], source: str, lookup: Lookup = NOWHERE) -> JobConfig:
    """Validate a mapping.

    Args:
        source: names it in errors.
        lookup: where copies of own parts may lie.
    """
    return validated(JobConfig, values, source, lookup=lookup)


def with_paths(job: JobConfig, folder: Path, other: Path, elsewhere: Iterable[str]) -> JobConfig:
    """Return the job with absolute paths.

    Args:
        folder: that paths are relative to.
        other: that those are relative to whose keys are in `elsewhere`, alone or as part of their section.

    Raises:
        ConfigError: a path that cannot be one; one line that names the key.
    """
    keys = set(elsewhere)

    def absolute(section: str, key: str, path: str) -> str:
        base = other if keys & {section, f"{section}.{key}"} else folder
        try:
            found = str((base / path).resolve())
            # It is written into YAML files and logs.
            found.encode()
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"{section}.{key}: {shown(path)} is no path that can be used: {printable(error)}"
            ) from error
        return found

    given = {key: getattr(job.data, key) for key in path_fields(type(job.data))}
    paths = {key: absolute("data", key, path) for key, path in given.items() if path is not None}
    if paths:
        job = job.model_copy(update={"data": job.data.model_copy(update=paths)})
    if job.batching.plan_file is not None:
        path = absolute("batching", "from", job.batching.plan_file)
        job = job.model_copy(update={"batching": job.batching.with_plan_file(path)})
    return job


def _split(override: str, source: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{source}: write key.path=value")
    return key.strip(), parse_value(text, source)
