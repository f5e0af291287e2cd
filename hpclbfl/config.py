"""A job file: YAML to validated, frozen models, with overrides and a canonical hash.

Every section is a frozen pydantic model; unknown keys and wrong types are refused with the file, the key and the
valid ones. The hash covers the scientific part alone: where data lie, which engine carries messages and how often a
checkpoint is written do not change the result.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StrictBool,
    ValidationError,
    field_validator,
    model_validator,
)

from hpclbfl.errors import ConfigError

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """One section of a job file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_bool_for_number(cls, values: Any) -> Any:
        # pydantic turns `yes` into 1 where a number is wanted; a slip of the pen, never a wish.
        if isinstance(values, dict):
            for key, value in values.items():
                field = cls.model_fields.get(key)
                if isinstance(value, bool) and field is not None and not _takes_bool(field.annotation):
                    raise ValueError(f"'{key}' takes no true or false")
        return values


def _takes_bool(annotation: Any) -> bool:
    return "bool" in str(annotation)


class DataConfig(Section):
    """Which images, from where, and how they are prepared."""

    name: str
    """digits, packed, cifar10, cifar100, caltech101, food101 or imagefolder."""
    path: str | None = None
    """The packed file, the image folder, or the folder that holds a torchvision set; relative to the job file."""
    download: StrictBool = False
    """Fetch a torchvision set that is not there; one rank per node does it."""
    augment: Literal["none", "crop_flip", "resized_crop_flip"] = "none"
    """crop_flip: pad by size/8, crop, flip (CIFAR). resized_crop_flip: random resized crop and flip (ImageNet)."""
    limit: PositiveInt | None = None
    """Keep this many training images, evenly over the classes; the test split is cut in the same proportion."""
    resize: PositiveInt | None = None
    """Side of the square images that the net sees, pixels; null keeps the size of the files."""
    in_memory: StrictBool | None = None
    """Decode all images once into memory; null: when they are of one size and small."""
    workers: NonNegativeInt = 2
    """Threads per rank that decode images on the fly (not used for images in memory)."""


class PartitionConfig(Section):
    """How the training set is spread over the clients."""

    kind: Literal["iid", "labels_per_client", "dirichlet", "quantity"] = "iid"
    labels: PositiveInt | None = None
    """labels_per_client: how many classes each client holds (contiguous blocks, as in the paper)."""
    alpha: PositiveFloat | None = None
    """dirichlet: concentration of the class mix; quantity: concentration of the shard sizes. Small is skewed."""

    @model_validator(mode="after")
    def _own_keys(self) -> PartitionConfig:
        if (self.labels is not None) != (self.kind == "labels_per_client"):
            raise ValueError("'labels' goes with kind labels_per_client, and only with it")
        if (self.alpha is not None) != (self.kind in ("dirichlet", "quantity")):
            raise ValueError("'alpha' goes with kind dirichlet or quantity, and only with them")
        return self


class ModelConfig(Section):
    """Which net."""

    name: str
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """ResNets alone: a 7x7 stride-2 convolution with pooling, or a 3x3 one (6 times the work at 32 px)."""
    dropout: Fraction | None = None
    """VGG, AlexNet and the ViTs; null: the net's own (0.5; 0 for ViTs)."""


class BspConfig(Section):
    """Bulk-synchronous: gradients are summed over all clients in every step (paper, Eq. 1 with H = 1)."""

    kind: Literal["bsp"] = "bsp"


class FedAvgConfig(Section):
    """Federated averaging: clients train alone for H steps, then parameters are averaged (paper, Eq. 1b)."""

    kind: Literal["fedavg"]
    local_steps: PositiveInt | None = None
    """H: optimizer steps of every client between two averagings."""
    local_epochs: PositiveFloat | None = None
    """Instead of local_steps: passes over the training set (the clients' global count) between two averagings."""
    weights: Literal["samples", "uniform"] = "samples"
    """samples: by the samples that each client processed since the last averaging."""
    optimizer_state: Literal["keep", "average", "reset"] = "keep"
    """What becomes of momentum and the like at an averaging."""

    @model_validator(mode="after")
    def _one_length(self) -> FedAvgConfig:
        if (self.local_steps is None) == (self.local_epochs is None):
            raise ValueError("give exactly one of 'local_steps' and 'local_epochs'")
        return self


SyncConfig = Annotated[BspConfig | FedAvgConfig, Field(discriminator="kind")]


class OptimizerConfig(Section):
    """The local optimizer: torch's SGD, Adam or AdamW."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: PositiveFloat = 0.1
    momentum: Fraction = 0.0
    nesterov: StrictBool = False
    weight_decay: NonNegativeFloat = 0.0
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> OptimizerConfig:
        if self.nesterov and not (self.name == "sgd" and self.momentum > 0):
            raise ValueError("'nesterov' needs name sgd and a momentum above 0")
        if self.momentum and self.name != "sgd":
            raise ValueError(f"'momentum' goes with sgd; {self.name} takes 'betas'")
        return self


class ScheduleConfig(Section):
    """The learning rate over the run, in epochs (global samples / training set size)."""

    kind: Literal["constant", "multistep", "cosine"] = "constant"
    milestones_epochs: tuple[PositiveFloat, ...] = ()
    gamma: PositiveFloat = 0.1
    total_epochs: PositiveFloat | None = None
    """cosine: where the rate reaches 0; null: the end of the run."""
    warmup_epochs: NonNegativeFloat = 0.0
    """Linear warm-up per step from lr (of the reference batch, when scaled) over this many epochs (Goyal et al.)."""
    scaling: Literal["none", "linear"] = "none"
    """linear: lr * B / reference_batch_size (Goyal et al. 2017)."""
    reference_batch_size: PositiveInt | None = None

    @model_validator(mode="after")
    def _own_keys(self) -> ScheduleConfig:
        if (self.kind == "multistep") != bool(self.milestones_epochs):
            raise ValueError("'milestones_epochs' goes with kind multistep, and only with it")
        if list(self.milestones_epochs) != sorted(self.milestones_epochs):
            raise ValueError("'milestones_epochs' must rise")
        if (self.scaling != "none") != (self.reference_batch_size is not None):
            raise ValueError("'scaling: linear' and 'reference_batch_size' go together")
        return self


class LossConfig(Section):
    """Cross-entropy."""

    label_smoothing: Fraction = 0.0


class BatchingConfig(Section):
    """How many samples each client processes per step."""

    policy: Literal["fixed"] = "fixed"
    local_batch_size: PositiveInt | tuple[PositiveInt, ...] | None = None
    """b_c: one for all clients, or a list with one per client."""
    global_batch_size: PositiveInt | None = None
    """B, spread as evenly as can be over the clients."""

    @model_validator(mode="after")
    def _one_size(self) -> BatchingConfig:
        if (self.local_batch_size is None) == (self.global_batch_size is None):
            raise ValueError("give exactly one of 'local_batch_size' and 'global_batch_size'")
        return self


class StopConfig(Section):
    """When the run ends: the first one met."""

    epochs: PositiveFloat | None = None
    steps: PositiveInt | None = None
    samples: PositiveInt | None = None
    seconds: PositiveFloat | None = None
    """Training time, without evaluation and checkpoints."""
    top1: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Test accuracy, as a fraction."""

    @model_validator(mode="after")
    def _some_end(self) -> StopConfig:
        if all(v is None for v in (self.epochs, self.steps, self.samples, self.seconds)):
            raise ValueError("give at least one of 'epochs', 'steps', 'samples', 'seconds' ('top1' may never come)")
        return self


class EvaluateConfig(Section):
    """How often the test accuracy is taken; always at the end, too."""

    every_epochs: PositiveFloat | None = None
    every_steps: PositiveInt | None = None
    splits: tuple[Literal["test", "train"], ...] = ("test",)
    batch_size: PositiveInt = 256

    @model_validator(mode="after")
    def _one_interval(self) -> EvaluateConfig:
        if self.every_epochs is not None and self.every_steps is not None:
            raise ValueError("give one of 'every_epochs' and 'every_steps'")
        return self

    @field_validator("splits")
    @classmethod
    def _test_is_there(cls, splits: tuple[str, ...]) -> tuple[str, ...]:
        if "test" not in splits or len(set(splits)) != len(splits):
            raise ValueError("must name 'test', and each split once")
        return splits


class CommConfig(Section):
    """Who carries the messages; never changes the result."""

    engine: Literal["auto", "horovod", "local"] = "auto"
    """auto: Horovod under MPI, local in a lone process."""
    bucket_mb: PositiveFloat = 25.0
    """Size of the gradient buckets that are reduced at once, MB."""


class JobConfig(Section):
    """A job file, whole."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$")] = "run"
    seed: NonNegativeInt = 0
    clients: PositiveInt | None = None
    """Federated participants; null: one per rank."""
    precision: Literal["float32", "float64", "bf16", "fp16"] = "float32"
    deterministic: StrictBool = False
    """GPUs: deterministic kernels alone."""
    data: DataConfig
    partition: PartitionConfig = PartitionConfig()
    model: ModelConfig
    sync: SyncConfig = BspConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    loss: LossConfig = LossConfig()
    batching: BatchingConfig = BatchingConfig(local_batch_size=32)
    stop: StopConfig = StopConfig(epochs=10)
    evaluate: EvaluateConfig = EvaluateConfig(every_epochs=1)
    comm: CommConfig = CommConfig()

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
        job = self.model_dump(mode="json", exclude={"name", "comm"})
        for key in ("path", "download", "workers", "in_memory"):
            del job["data"][key]
        job["data"]["fingerprint"] = data_fingerprint
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
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a job file is a mapping with 'data' and 'model'")
    for override in overrides or []:
        _apply_override(values, override)
    job = parse_job(values, str(path))
    if job.data.path is not None and not Path(job.data.path).is_absolute():
        is_override = any(o.partition("=")[0].strip() in ("data", "data.path") for o in overrides or [])
        beside = ((Path.cwd() if is_override else path.parent) / job.data.path).resolve()
        job = job.model_copy(update={"data": job.data.model_copy(update={"path": str(beside)})})
    return job


def parse_job(values: dict[str, Any], source: str) -> JobConfig:
    """Validate a mapping; `source` names it in errors."""
    try:
        return JobConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e, source, values) for e in error.errors()[:3])) from error


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


def _explain(error: Any, source: str, values: dict[str, Any]) -> str:
    location = [part for part in error["loc"] if isinstance(part, int | str)]
    # A discriminated section adds its kind to the location; the user never wrote that.
    path = [str(part) for part in location if not (part in ("bsp", "fedavg") and location[0] == "sync")]
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        valid = _valid_keys(location[:-1])
        near = difflib.get_close_matches(path[-1], valid, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        where = f"under '{'.'.join(path[:-1])}'" if path[:-1] else "at the top"
        return f"{source}: unknown key '{key}': {hint}valid {where}: {', '.join(valid)}"
    if error["type"] == "missing":
        return f"{source}: '{key}' is missing"
    message = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    shown = f", not {given!r}" if isinstance(given, str | int | float | bool) else ""
    return f"{source}: {key or 'job'}: {message[0].lower() + message[1:]}{shown}"


def _valid_keys(location: list[Any]) -> list[str]:
    model: type[BaseModel] = JobConfig
    for part in location:
        if part in ("bsp", "fedavg") and model is not JobConfig:
            continue
        if part == "sync":
            model = FedAvgConfig if "fedavg" in location else BspConfig
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)
