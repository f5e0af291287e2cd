"""The sections of a job file: frozen models that refuse unknown keys and wrong types."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StrictBool,
    field_validator,
    model_validator,
)

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


class ScalerConfig(Section):
    """The step-up function of Eq. 6: the gradient is multiplied by `factor` in some steps."""

    factor: PositiveFloat
    """X; 1 changes nothing."""
    threshold: NonNegativeFloat = 0.5
    """Of the relative change of the squared gradient norm (Eq. 8)."""
    when: Literal["delta_ge", "delta_lt", "always", "never", "random"] = "delta_ge"
    """delta_ge: where the change reaches the threshold, as the paper evaluated it; delta_lt: where it stays below, as
    its Eq. 6 reads (the two contradict each other); always, never, random: controls."""
    duty: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """random: share of the steps that are scaled."""

    @model_validator(mode="after")
    def _own_keys(self) -> ScalerConfig:
        if (self.duty is not None) != (self.when == "random"):
            raise ValueError("'duty' goes with when: random, and only with it")
        return self


class GradientsConfig(Section):
    """What happens between the reduced gradient and the optimizer."""

    scaler: ScalerConfig | None = None
    measure: StrictBool = True
    """Log the squared norm and its relative change also where nothing is scaled."""


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
    """Rise in equal steps over this many epochs: to lr from zero, or when scaled from lr to the scaled rate."""
    scaling: Literal["none", "linear"] = "none"
    """linear: lr * B / reference_batch_size (Goyal et al. 2017)."""
    reference_batch_size: PositiveInt | None = None

    @model_validator(mode="after")
    def _own_keys(self) -> ScheduleConfig:
        if (self.kind == "multistep") != bool(self.milestones_epochs):
            raise ValueError("'milestones_epochs' goes with kind multistep, and only with it")
        if list(self.milestones_epochs) != sorted(set(self.milestones_epochs)):
            raise ValueError("'milestones_epochs' must rise")
        if self.total_epochs is not None and self.kind != "cosine":
            raise ValueError("'total_epochs' goes with kind cosine")
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

    @field_validator("local_batch_size", mode="before")
    @classmethod
    def _number_or_list(cls, value: Any) -> Any:
        sizes = value if isinstance(value, list | tuple) else [value]
        if value is not None and not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError("should be a whole number above 0, or a list with one for each client")
        return value

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
    """How often the test accuracy is taken: every epoch unless said otherwise; always at the end, too."""

    every_epochs: PositiveFloat | None = None
    every_steps: PositiveInt | None = None
    splits: tuple[Literal["test", "train"], ...] = ("test",)
    batch_size: PositiveInt = 256

    @model_validator(mode="before")
    @classmethod
    def _every_epoch(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("every_epochs") is None and values.get("every_steps") is None:
            return {**values, "every_epochs": 1}
        return values

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
