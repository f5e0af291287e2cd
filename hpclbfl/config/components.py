"""The kinds of components that a job names, and their validated configs.

What a class of the user's own must be to join a kind stands with the kind, see `hpclbfl.core.registry.Interface`:

- a data set is made with its config, and has `train` and `test`; see `hpclbfl.data.sets`;
- a net is a `torch.nn.Module`, made with its config and a `hpclbfl.models.DataSpec`; weights come from torch's global
  generator, which is seeded before;
- a loss is made with its config and a `DataSpec`, and called with outputs and targets; see `hpclbfl.losses`;
- a partition is made with its config, and called with labels (int64 [N]), the number of clients, the number of classes
  and a numpy generator; it returns the places of each client's samples, as those of `hpclbfl.data.partitions` do;
- an algorithm is made with its config, the global batch size and the size of the training set, and is derived from
  `hpclbfl.algorithms.base.Algorithm`, or has its methods;
- a gradient transform is made with its config, and is a `hpclbfl.gradients.GradientTransform`;
- a teacher is made with its config, and is a `hpclbfl.gradients.teacher.kind.Kind`;
- a detector is made with its config, and is a `hpclbfl.gradients.change.Detector`;
- a batch policy is made with its config, the job, the number of ranks, the batch sizes at the start and what each
  client can hold at most; it is a `hpclbfl.batching.BatchPolicy`, and its state holds
  what `hpclbfl.core.state` lets through;
- an optimizer is a `torch.optim.Optimizer`, made with its config and torch's parameter groups; one that is not derived
  from torch's SGD, Adam or AdamW has a method `reset_state`, see `hpclbfl.optim.slots`;
- a schedule is made with its config, and called with an epoch; it returns what the rate is multiplied with;
- a compressor is made with its config, and is a `hpclbfl.comm.compression.Codec`;
- a rule of compression is made with its config, and is a `hpclbfl.comm.compression.adapt.Adapter`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpclbfl.config.sections.algorithm import AlgorithmConfig
from hpclbfl.config.sections.batching import BatchingConfig
from hpclbfl.config.sections.compression import AdaptConfig, CompressionConfig
from hpclbfl.config.sections.data import DataConfig
from hpclbfl.config.sections.gradients import DetectorConfig, TeacherConfig, TransformConfig
from hpclbfl.config.sections.model import LossConfig, ModelConfig
from hpclbfl.config.sections.optimizer import OptimizerConfig
from hpclbfl.config.sections.partition import PartitionConfig
from hpclbfl.config.sections.schedule import ScheduleConfig
from hpclbfl.core.registry import Interface, Registry

DATASETS = Registry[DataConfig]("data set", "name", "hpclbfl.data.sets", interface=Interface(DataConfig, ("config",)))
MODELS = Registry[ModelConfig](
    "net",
    "name",
    "hpclbfl.models.nets",
    interface=Interface(ModelConfig, ("config", "data"), ("forward", "parameters")),
)
ALGORITHMS = Registry[AlgorithmConfig](
    "algorithm",
    "kind",
    "hpclbfl.algorithms",
    default="bsp",
    interface=Interface(
        AlgorithmConfig,
        ("config", "global_batch_size", "num_train"),
        ("shares_model", "start", "step", "end_of_step", "why_never", "state_dict", "load_state_dict"),
    ),
)
TRANSFORMS = Registry[TransformConfig](
    "gradient transform",
    "name",
    ("hpclbfl.gradients", "hpclbfl.gradients.teacher"),
    interface=Interface(TransformConfig, ("config",), ("init", "update")),
)
TEACHERS = Registry[TeacherConfig](
    "teacher",
    "kind",
    "hpclbfl.gradients.teacher",
    interface=Interface(TeacherConfig, ("config",), ("init", "collect", "test", "learn", "has_drifted", "apply")),
)
DETECTORS = Registry[DetectorConfig](
    "detector",
    "name",
    "hpclbfl.gradients.detectors",
    interface=Interface(DetectorConfig, ("config",), ("init", "observe")),
)
LOSSES = Registry[LossConfig](
    "loss",
    "name",
    "hpclbfl.losses",
    default="cross_entropy",
    interface=Interface(LossConfig, ("config", "data"), ("__call__",)),
)
PARTITIONS = Registry[PartitionConfig](
    "partition",
    "kind",
    "hpclbfl.data.partitions",
    default="iid",
    interface=Interface(
        PartitionConfig, ("config",), ("__call__",), ("labels", "num_clients", "num_classes", "generator")
    ),
)
POLICIES = Registry[BatchingConfig](
    "batch policy",
    "policy",
    "hpclbfl.batching",
    default="fixed",
    interface=Interface(BatchingConfig, ("config", "job", "num_ranks", "sizes", "capacity"), ("init", "update")),
)
OPTIMIZERS = Registry[OptimizerConfig](
    "optimizer",
    "name",
    "hpclbfl.optim.optimizers",
    default="sgd",
    interface=Interface(OptimizerConfig, ("config", "groups"), ("step", "zero_grad", "load_state_dict")),
)
SCHEDULES = Registry[ScheduleConfig](
    "schedule",
    "kind",
    "hpclbfl.optim.schedules",
    default="constant",
    interface=Interface(ScheduleConfig, ("config",), ("__call__",)),
)
COMPRESSORS = Registry[CompressionConfig](
    "compressor",
    "kind",
    "hpclbfl.comm.compression",
    interface=Interface(CompressionConfig, ("config",), ("size", "encode", "decode_")),
)
ADAPTERS = Registry[AdaptConfig](
    "rule of compression",
    "by",
    "hpclbfl.comm.compression.adapt",
    interface=Interface(AdaptConfig, ("config",), ("init", "level", "update")),
)

SECTIONS: Mapping[str, Registry[Any]] = {
    "data": DATASETS,
    "model": MODELS,
    "partition": PARTITIONS,
    "sync": ALGORITHMS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "loss": LOSSES,
    "batching": POLICIES,
    "compression": COMPRESSORS,
}
"""Sections of a job that are a component each."""
NESTED: Mapping[str, Registry[Any]] = {
    "transform": TRANSFORMS,
    "detector": DETECTORS,
    "adapter": ADAPTERS,
    "teacher": TEACHERS,
}
"""Components that stand within a section, by the kind that `Nested` names."""
