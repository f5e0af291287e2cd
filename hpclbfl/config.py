"""A job file: YAML to a validated, frozen model, with overrides and a canonical hash.

Unknown keys and wrong types are refused with the file, the key and the valid ones. The hash covers the scientific part
alone: where data lie, which engine carries messages and how often a checkpoint is written do not change the result.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, PositiveInt, StrictBool, ValidationError, model_validator

from hpclbfl.errors import ConfigError
from hpclbfl.sections import (
    BatchingConfig,
    BspConfig,
    CheckpointConfig,
    CommConfig,
    DataConfig,
    EmulateConfig,
    EvaluateConfig,
    FedAvgConfig,
    GradientsConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    PartitionConfig,
    PostLocalConfig,
    ScheduleConfig,
    Section,
    SelSyncConfig,
    StopConfig,
    SyncConfig,
)


class JobConfig(Section):
    """A job file, whole."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$")] = "run"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    clients: PositiveInt | None = None
    """Federated participants; null: one per rank."""
    precision: Literal["float32", "float64", "bf16", "fp16"] = "float32"
    deterministic: StrictBool = False
    """GPUs: deterministic kernels alone."""
    data: DataConfig
    partition: PartitionConfig = PartitionConfig()
    model: ModelConfig
    sync: SyncConfig = BspConfig()
    gradients: GradientsConfig = GradientsConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    loss: LossConfig = LossConfig()
    batching: BatchingConfig = BatchingConfig(local_batch_size=32)
    emulate: EmulateConfig | None = None
    stop: StopConfig = StopConfig(epochs=10)
    evaluate: EvaluateConfig = EvaluateConfig(every_epochs=1)
    on_nonfinite: Literal["stop", "skip", "restore", "ignore"] = "stop"
    """A gradient that is not finite: stop the run; skip the step; go back to the last checkpoint, once; or train on."""
    checkpoint: CheckpointConfig = CheckpointConfig(every_s=300)
    comm: CommConfig = CommConfig()

    @model_validator(mode="after")
    def _sections_fit(self) -> JobConfig:
        gradients, sync = self.gradients, self.sync
        if isinstance(sync, FedAvgConfig | SelSyncConfig) and gradients.shared_only:
            keys = ", ".join(f"gradients.{key}" for key in gradients.shared_only)
            raise ValueError(f"{keys}: for gradients that are summed over clients, under sync bsp and post_local")
        if gradients.extrapolation_lr is not None and self.precision == "fp16":
            raise ValueError("gradients.extrapolation_lr does not go with precision fp16")
        if isinstance(sync, SelSyncConfig):
            if not gradients.measure:
                raise ValueError("sync selsync needs 'gradients.measure: true'")
            if gradients.scaler is not None and gradients.scaler.change != sync.change:
                raise ValueError("sync.change and gradients.scaler.change must agree: a run has one change metric")
        if self.on_nonfinite in ("skip", "restore") and not gradients.measure:
            raise ValueError(f"on_nonfinite: {self.on_nonfinite} needs 'gradients.measure: true'")
        if gradients.compression != "none" and self.comm.engine == "mpi":
            raise ValueError("gradients.compression: MPI cannot sum fp16; comm.engine horovod can")
        return self

    def resolved(self, num_ranks: int) -> JobConfig:
        """The job with its clients counted; refuses a batch list of another length."""
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
        """What changes the result: the job without name, engine and paths, the data by their content."""
        job = self.model_dump(mode="json", exclude={"name", "comm", "checkpoint"})
        for key in ("path", "download", "workers", "in_memory"):
            del job["data"][key]
        job["data"]["fingerprint"] = data_fingerprint
        source = self.batching.source
        if source is not None and source != "warmup":
            try:
                job["batching"]["from"] = hashlib.sha256(Path(source).read_bytes()).hexdigest()
            except OSError as error:
                raise ConfigError(f"batching.from: {source} cannot be read: {error.strerror}") from error
        return job

    def digest(self, data_fingerprint: str) -> str:
        """Ten hexadecimal digits that name this experiment."""
        text = json.dumps(self.scientific(data_fingerprint), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def slug(self) -> str:
        """The name, fit for a folder."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    def to_yaml(self) -> str:
        """The whole job as a job file."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, where YAML would let the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(self.construct_object(key_node, deep=True))
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_job(path: Path, overrides: list[str] | None = None) -> JobConfig:
    """Read a job file and apply `key.path=value` overrides (values are YAML).

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong; one line that names it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"{path}: cannot be read: {reason}") from error
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{where}: not valid YAML: {reason}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a job file is a mapping with 'data' and 'model'")
    for override in overrides or []:
        _apply_override(values, override)
    job = parse_job(values, str(path))
    given = {override.partition("=")[0].strip() for override in overrides or []}
    if job.data.path is not None:
        found = _beside(path, job.data.path, bool(given & {"data", "data.path"}))
        job = job.model_copy(update={"data": job.data.model_copy(update={"path": found})})
    source = job.batching.source
    if source is not None and source != "warmup":
        found = _beside(path, source, bool(given & {"batching", "batching.from"}))
        job = job.model_copy(update={"batching": job.batching.model_copy(update={"source": found})})
    return job


def _beside(job_file: Path, path: str, is_override: bool) -> str:
    """An absolute path: relative ones are meant from the job file, in overrides from the current folder."""
    return str(((Path.cwd() if is_override else job_file.parent) / path).resolve())


def parse_job(values: dict[str, Any], source: str) -> JobConfig:
    """Validate a mapping; `source` names it in errors."""
    try:
        return JobConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e, source) for e in error.errors()[:3])) from error


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override '{override}': write key.path=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override '{override}': the value is not valid YAML") from error
    *parents, last = key.strip().split(".")
    node = values
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"override '{override}': '{parent}' is a value, it has no keys")
        node = child
    node[last] = value


def _explain(error: Any, source: str) -> str:
    path, model = _locate(error["loc"])
    key = ".".join(path)
    kind = error["type"]
    if kind == "extra_forbidden":
        valid = [field.alias or name for name, field in model.model_fields.items()]
        *parents, last = path
        near = difflib.get_close_matches(last, valid, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        where = f"under '{'.'.join(parents)}'" if parents else "at the top"
        return f"{source}: unknown key '{key}': {hint}valid {where}: {', '.join(valid)}"
    if kind == "missing":
        return f"{source}: '{key}' is missing"
    if kind == "union_tag_not_found":
        return f"{source}: '{key}.kind' is missing: {' or '.join(_SYNC_KINDS)}"
    if kind == "union_tag_invalid":
        return f"{source}: {key}.kind: '{error['ctx']['tag']}' is not known: {' or '.join(_SYNC_KINDS)}"
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    shown = f", not {given!r}" if isinstance(given, str | int | float | bool | list) else ""
    return f"{source}: {key or 'job'}: {message[0].lower() + message[1:]}{shown}"


def _locate(location: tuple[int | str, ...]) -> tuple[list[str], type[BaseModel]]:
    """The keys as the user wrote them, and the section that holds the last one.

    pydantic's locations also name the branch of a union that it tried.
    """
    path: list[str] = []
    model: type[BaseModel] = JobConfig
    for index, part in enumerate(location):
        if path == ["sync"] and part in _SYNC_KINDS:
            model = _SYNC_KINDS[str(part)]
            continue
        path.append(str(part))
        field = model.model_fields.get(str(part))
        if index < len(location) - 1 and field is not None:
            # A section, or one that may be absent: `Section | None`.
            for annotation in get_args(field.annotation) or (field.annotation,):
                if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                    model = annotation
    return path, model


_SYNC_KINDS: dict[str, type[Section]] = {
    "bsp": BspConfig,
    "fedavg": FedAvgConfig,
    "post_local": PostLocalConfig,
    "selsync": SelSyncConfig,
}
