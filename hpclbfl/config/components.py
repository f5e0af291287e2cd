"""The kinds of components that a job names, and their validated configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from hpclbfl.config.sections.algorithm import AlgorithmConfig
from hpclbfl.config.sections.base import Section
from hpclbfl.config.sections.model import ModelConfig
from hpclbfl.config.sections.optimizer import OptimizerConfig
from hpclbfl.config.sections.partition import PartitionConfig
from hpclbfl.config.sections.schedule import ScheduleConfig
from hpclbfl.config.validation import suggestion, validated
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.registry import Registry, fields_of
from hpclbfl.core.text import shown

MODELS = Registry[ModelConfig]("net", "name", "hpclbfl.models.nets")
ALGORITHMS = Registry[AlgorithmConfig]("algorithm", "kind", "hpclbfl.algorithms", default="bsp")
PARTITIONS = Registry[PartitionConfig]("partition", "kind", "hpclbfl.data.partitions", default="iid")
OPTIMIZERS = Registry[OptimizerConfig]("optimizer", "name", "hpclbfl.optim.optimizers", default="sgd")
SCHEDULES = Registry[ScheduleConfig]("schedule", "kind", "hpclbfl.optim.schedules", default="constant")

Config = TypeVar("Config", bound=Section)

SECTIONS: Mapping[str, Registry[Any]] = {
    "model": MODELS,
    "partition": PARTITIONS,
    "sync": ALGORITHMS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
}
"""Sections of a job that are a component each."""


def with_components(job: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return a job's sections with those that are components validated, and those that are left out filled in.

    Args:
        job: as it stands in a file.
        source: begins the line of an error: the file.

    Raises:
        ConfigError: a component that is not known, or a key or value that is wrong; one line.
    """
    found = dict(job)
    for section, registry in SECTIONS.items():
        values = job.get(section, {} if registry.default is not None else None)
        if not isinstance(values, Section) and (section in job or registry.default is not None):
            found[section] = component_config(registry, values, source, section)
    return found


def component_config(registry: Registry[Config], values: Any, source: str, section: str) -> Config:
    """Return the validated config of the component that a section names.

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
    component = registry.find(name) if isinstance(name, str) else None
    if component is None:
        hint = suggestion(name, registry.names()) if isinstance(name, str) else ""
        raise ConfigError(f"{where}.{registry.key}: {shown(name)} is not known: {hint}known are {known}")
    own = {registry.key: name}
    for key, value in values.items():
        holders = registry.holders(key) if isinstance(key, str) and key not in fields_of(component.config) else {}
        if not holders:
            own[key] = value
        # Jobs that a version up to 0.1 has printed name all keys of all components.
        elif value is not None and not any(_is_default(value, config, key) for config in holders.values()):
            listed = " or ".join(holders)
            raise ConfigError(f"{where}: '{key}' goes with {registry.key} {listed}, not {name}")
    return validated(component.config, own, source, (section,))


def _is_default(value: Any, config: type[Section], key: str) -> bool:
    default = fields_of(config)[key].get_default()
    return bool(value == (list(default) if isinstance(default, tuple) else default))
