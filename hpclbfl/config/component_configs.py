"""From what a job says of its components to their validated configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic.fields import FieldInfo

from hpclbfl.config.components import DETECTORS, NESTED, SECTIONS, TRANSFORMS
from hpclbfl.config.own_parts import NOWHERE, Lookup, find_own, own_config
from hpclbfl.config.sections.base import Nested, Section
from hpclbfl.config.sections.gradients import DetectorConfig, GradientsConfig, TransformConfig
from hpclbfl.config.validation import nearest, suggestion, validated
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.registry import Component, Registry, fields_of
from hpclbfl.core.text import MAX_SHOWN, printable, shown

Config = TypeVar("Config", bound=Section)

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
    if isinstance(job.get("gradients"), Mapping):
        found["gradients"] = _with_nested(GradientsConfig, job["gradients"], source, "gradients", lookup)
    return found


def _with_nested(
    config: type[Section], values: Mapping[str, Any], source: str, section: str, lookup: Lookup
) -> dict[str, Any]:
    """A section's values with the components validated that stand within it."""
    found = dict(values)
    for key, field in fields_of(config).items():
        mark = nested_mark(field)
        if mark is None or key not in found or (found[key] is None and field.default is None):
            continue
        registry, where = NESTED[mark.kind], f"{section}.{key}"
        if mark.name is not None:
            given = found[key]
            if isinstance(given, Mapping) and registry.key in given:
                raise ConfigError(f"{source}: unknown key '{where}.{registry.key}': '{key}' says which it is")
            named = {**given, registry.key: mark.name} if isinstance(given, Mapping) else given
            if not isinstance(given, Section):
                found[key] = component_config(registry, named, source, where, lookup)
        elif mark.many:
            if isinstance(found[key], list | tuple):
                places = enumerate(found[key])
                found[key] = [_nested(registry, value, source, f"{where}.{place}", lookup) for place, value in places]
        elif found[key] not in mark.words:
            found[key] = _nested(registry, found[key], source, where, lookup, mark.words)
    return found


def nested_mark(field: FieldInfo) -> Nested | None:
    """Tell that a key's value is a component; the key itself is marked, or one of the types that it takes."""
    inner = (mark for one in get_args(field.annotation) for mark in getattr(one, "__metadata__", ()))
    return next((mark for mark in (*field.metadata, *inner) if isinstance(mark, Nested)), None)


def _nested(
    registry: Registry[Any], value: Any, source: str, where: str, lookup: Lookup, words: tuple[str, ...] = ()
) -> Any:
    """One that comes with the package stays a name, any other becomes its config."""
    if isinstance(value, Section):
        return value
    if isinstance(value, str) and ":" not in value:
        # Refuses one that is not known; its own keys stand elsewhere, or it has none.
        find_component(registry, value, source, where, words)
        return value
    if isinstance(value, str):
        value = {registry.key: value}
    if not isinstance(value, Mapping):
        known = ", ".join((*words, *registry.names()))
        given = "null" if value is None else shown(value)
        raise ConfigError(f"{source}: {where}: should be the name of a {registry.what} ({known}), not {given}")
    return component_config(registry, value, source, where, lookup)


def detector_config(name: Any) -> DetectorConfig:
    """The config of a detector that a job names. Raises ValueError: there is none of this name."""
    if isinstance(name, DetectorConfig):
        return name
    found = DETECTORS.find(name) if isinstance(name, str) else None
    if found is None:
        raise ValueError(f"{shown(name)} is no detector: known are {', '.join(DETECTORS.names())}")
    return found.config(name=name)


def with_threshold(values: Any, change: str, threshold: str) -> Any:
    """A section's values with the threshold of its detector, unless they state one.

    Args:
        values: as the file gives them.
        change: the detector, where the values name none.
        threshold: which of a detector's thresholds, see `DetectorConfig`, where the detector's keys state none.

    Raises:
        ValueError: the section and the detector's keys state two.
    """
    if not isinstance(values, dict):
        return values
    stated = values.get("threshold")
    if stated is not None and "change" not in values:
        return values
    detector = detector_config(values.get("change", change))
    if stated is None:
        own = detector.threshold
        return {**values, "threshold": getattr(detector, threshold) if own is None else own}
    if detector.threshold not in (None, stated):
        raise ValueError(f"'threshold' is {shown(stated)} here and {shown(detector.threshold)} within 'change'")
    return values


def transform_configs(gradients: GradientsConfig) -> list[TransformConfig]:
    """Configs of a job's gradient transforms, in their order.

    Raises:
        ValueError: `gradients.chain` names one that has no settings, or leaves one out that has.
    """
    configs = {name: TRANSFORMS.config(name) for name in TRANSFORMS.names()}
    by_place = sorted(configs, key=lambda name: configs[name].place)
    settings = {name: configs[name].of_section(gradients) for name in by_place}
    present = {name: config for name, config in settings.items() if config is not None}
    if gradients.chain is None:
        return list(present.values())
    named = [name for name in gradients.chain if isinstance(name, str)]
    for name in named:
        if name not in present:
            raise ValueError(f"gradients.chain: {name!r} has no settings under 'gradients'")
    left_out = [name for name in present if name not in named]
    if left_out or len(set(named)) < len(named):
        raise ValueError(f"gradients.chain: must name {' and '.join(map(repr, present)) or 'your own'} once each")
    return [present[entry] if isinstance(entry, str) else entry for entry in gradients.chain]


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
    if name is None:
        known = ", ".join(registry.names())
        raise ConfigError(f"{source}: '{section}.{registry.key}' is missing: known are {known}")
    if isinstance(name, str) and ":" in name:
        name = find_own(registry, name, f"{where}.{registry.key}", lookup)
        own_part = registry.find(name)
        if own_part is not None:
            own_values = _with_nested(own_part.config, values, source, section, lookup)
            return own_config(own_part.config, {**own_values, registry.key: name}, source, section)
    component = find_component(registry, name, source, f"{section}.{registry.key}")
    values = _with_nested(component.config, values, source, section, lookup)
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
    return validated(component.config, own, source, section.split("."))


def find_component(
    registry: Registry[Config], name: Any, source: str, key: str, words: tuple[str, ...] = ()
) -> Component[Config]:
    """One that comes with the package, or is entered already.

    Args:
        words: what the key takes besides.

    Raises:
        ConfigError: it is not known.
    """
    found = registry.find(name) if isinstance(name, str) else None
    if found is None:
        names = [*words, *registry.names()]
        hint = suggestion(name, names) if isinstance(name, str) else ""
        known = ", ".join(names)
        raise ConfigError(f"{source}: {key}: {shown(name)} is not known: {hint}known are {known}")
    return found


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
