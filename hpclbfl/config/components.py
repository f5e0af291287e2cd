"""The kinds of components that a job names, and their validated configs.

What a class of the user's own must be to join a kind stands with the kind, see `hpclbfl.core.registry.Interface`:

- a data set is made with its config, and has `train` and `test`; see `hpclbfl.data.sets`;
- a net is a `torch.nn.Module`, made with its config and a `hpclbfl.models.DataSpec`; weights come from torch's global
  generator, which is seeded before;
- a loss is made with its config and a `DataSpec`, and called with outputs and targets; see `hpclbfl.losses`;
- a partition is made with its config, and called with labels (int64 [N]), the number of clients, the number of classes
  and a numpy generator; it returns the places of each client's samples, as those of `hpclbfl.data.partitions` do;
- an algorithm is made with its config, the global batch size and the size of the training set, and has the methods of
  `hpclbfl.algorithms.Synchroniser`;
- a batch policy is made with its config, the job, the number of ranks, the batch sizes at the start and what each
  client can hold at most; it is a `hpclbfl.batching.BatchPolicy`, and its state holds
  what `hpclbfl.core.state` lets through;
- an optimizer is a `torch.optim.Optimizer`, made with its config and torch's parameter groups; one that is not derived
  from torch's SGD, Adam or AdamW has a method `reset_state`, see `hpclbfl.optim.slots`;
- a schedule is made with its config, and called with an epoch; it returns what the rate is multiplied with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from hpclbfl.config.own_parts import NOWHERE, Lookup, find_own, own_config
from hpclbfl.config.sections.algorithm import AlgorithmConfig
from hpclbfl.config.sections.base import Section
from hpclbfl.config.sections.batching import BatchingConfig
from hpclbfl.config.sections.data import DataConfig
from hpclbfl.config.sections.model import LossConfig, ModelConfig
from hpclbfl.config.sections.optimizer import OptimizerConfig
from hpclbfl.config.sections.partition import PartitionConfig
from hpclbfl.config.sections.schedule import ScheduleConfig
from hpclbfl.config.validation import nearest, suggestion, validated
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.registry import Interface, Registry, fields_of
from hpclbfl.core.text import MAX_SHOWN, printable, shown

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
        ("shared", "needs_vote", "averages", "why_never"),
    ),
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

Config = TypeVar("Config", bound=Section)

SECTIONS: Mapping[str, Registry[Any]] = {
    "data": DATASETS,
    "model": MODELS,
    "partition": PARTITIONS,
    "sync": ALGORITHMS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "loss": LOSSES,
    "batching": POLICIES,
}
"""Sections of a job that are a component each."""


_LEFT_OUT: Mapping[str, Mapping[str, Any]] = {"batching": {"local_batch_size": 32}}
"""What a job has that leaves a section out, besides the component's own defaults."""


def with_components(job: Mapping[str, Any], source: str, lookup: Lookup = NOWHERE) -> dict[str, Any]:
    """Return a job's sections with those that are components validated, and those that are left out filled in.

    Args:
        job: as it stands in a file.
        source: begins the line of an error: the file.
        lookup: where copies of own parts may lie.

    Raises:
        ConfigError: a component that is not known, or a key or value that is wrong; one line.
    """
    found = dict(job)
    for section, registry in SECTIONS.items():
        values = job.get(section, _LEFT_OUT.get(section, {}) if registry.default is not None else None)
        if not isinstance(values, Section) and (section in job or registry.default is not None):
            found[section] = component_config(registry, values, source, section, lookup)
    return found


def component_config(
    registry: Registry[Config], values: Any, source: str, section: str, lookup: Lookup = NOWHERE
) -> Config:
    """Return the validated config of the component that a section names: one of the package's, or of the user's own.

    Raises:
        ConfigError: see `with_components`.
    """
    where = f"{source}: {section}"
    if not isinstance(values, Mapping):
        given = "null" if values is None else shown(values)
        raise ConfigError(f"{where}: should be a mapping, not {given}")
    name = values.get(registry.key, registry.default)
    known = ", ".join(registry.names())
    if name is None:
        raise ConfigError(f"{source}: '{section}.{registry.key}' is missing: known are {known}")
    if isinstance(name, str) and ":" in name:
        name = find_own(registry, name, f"{where}.{registry.key}", lookup)
        own_part = registry.find(name)
        if own_part is not None:
            return own_config(own_part.config, {**values, registry.key: name}, source, section)
    component = registry.find(name) if isinstance(name, str) else None
    if component is None:
        hint = suggestion(name, registry.names()) if isinstance(name, str) else ""
        raise ConfigError(f"{where}.{registry.key}: {shown(name)} is not known: {hint}known are {known}")
    fields = fields_of(component.config)
    own = {registry.key: name}
    for key, value in values.items():
        others = registry.holders(key) if isinstance(key, str) and key not in fields else {}
        if others and (value is None or any(_is_default(value, config, key) for config in others.values())):
            # Jobs that a version up to 0.1 has printed name all keys of all components.
            continue
        if others:
            raise ConfigError(f"{where}: '{key}' goes with {registry.key} {' or '.join(others)}, not {name}")
        if isinstance(key, str) and key not in fields and not suggestion(key, fields):
            _suggest_another(registry, key, source, section)
        own[key] = value
    return validated(component.config, own, source, (section,))


def _suggest_another(registry: Registry[Any], key: str, source: str, section: str) -> None:
    """Refuse an unknown key that is near one of another component. Raises ConfigError."""
    near = nearest(key, registry.keys())
    if near:
        shown_key = printable(f"{section}.{key}", MAX_SHOWN)
        holders = " or ".join(registry.holders(near))
        raise ConfigError(
            f"{source}: unknown key '{shown_key}': did you mean '{near}', which goes with {registry.key} {holders}?"
        )


def _is_default(value: Any, config: type[Section], key: str) -> bool:
    default = fields_of(config)[key].get_default()
    return bool(value == (list(default) if isinstance(default, tuple) else default))
