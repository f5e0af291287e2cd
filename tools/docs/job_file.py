"""The reference of the job file: every section, component and key, from the configs' own docstrings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from hpclbfl.config.components import ADAPTERS, DETECTORS, SECTIONS
from hpclbfl.config.job import JobConfig
from hpclbfl.config.sections import DetectorConfig
from hpclbfl.core.registry import Component, Registry, fields_of
from tools.docs.docstrings import docstring
from tools.docs.keys import Config, Key, keys_of, keys_table
from tools.docs.markdown import text
from tools.docs.values import nested_registry, sections_of


def job_file() -> str:
    """The reference, as Markdown."""
    sections = fields_of(JobConfig)
    plain = [key for key in keys_of(JobConfig) if key.name not in SECTIONS and not _inner(sections[key.name])]
    parts = ["### The job itself", keys_table(plain)]
    for name, field in sections.items():
        if name in SECTIONS:
            parts += _components(name, SECTIONS[name], _inner(field)[0])
        elif field.discriminator is not None:
            parts += _union(name, field)
        else:
            parts += [part for config in _inner(field) for part in _section(name, config, 3)]
    parts += _rules()
    parts += _detectors()
    return "\n\n".join(parts)


def all_keys() -> Iterator[Key]:
    """Every key that a job may have, of all components."""
    yield from _keys_within(JobConfig, "")
    for section, registry in SECTIONS.items():
        for _, found in _grouped(registry):
            yield from _keys_within(found.config, f"{section}.")


def _inner(field: Any) -> list[Config]:
    return sections_of(field)


def _keys_within(config: Config, prefix: str) -> Iterator[Key]:
    yield from keys_of(config, prefix)
    for name, field in fields_of(config).items():
        for inner in _inner(field):
            yield from _keys_within(inner, f"{prefix}{name}.")
        registry = nested_registry(field)
        for _, found in _grouped(registry) if registry is not None else ():
            yield from _keys_within(found.config, f"{prefix}{name}.")


def _section(name: str, config: Config, level: int) -> Iterator[str]:
    """A section that is no component, then those within it."""
    yield f"{'#' * level} `{name}`"
    yield text(docstring(config))
    yield keys_table(keys_of(config, f"{name}."))
    for key, field in fields_of(config).items():
        for inner in _inner(field):
            yield from _section(f"{name}.{key}", inner, level + 1)
        registry = nested_registry(field)
        if registry is not None and registry.interface is not None:
            yield from _components(f"{name}.{key}", registry, registry.interface.config, level + 1)


def _components(section: str, registry: Registry[Any], shared: Config, level: int = 3) -> Iterator[str]:
    """A section that names a component: what all share, then each."""
    yield f"{'#' * level} `{section}`"
    yield text(docstring(shared))
    yield _choice(registry.key, registry.names(), registry.default)
    common = [key for key in keys_of(shared, f"{section}.") if key.name != registry.key]
    if common:
        yield f"All of them have:\n\n{keys_table(common)}"
    for names, found in _grouped(registry):
        yield f"{'#' * (level + 1)} `{section}.{registry.key}: {' | '.join(names)}`"
        yield text(_described(registry, found))
        keys = keys_of(found.config, f"{section}.", {registry.key: names[0]})
        own = [key for key in keys if key not in common and key.name != registry.key]
        if own:
            yield keys_table(own)
        for key, field in fields_of(found.config).items():
            if key not in fields_of(shared):
                for inner in _inner(field):
                    yield from _section(f"{section}.{key}", inner, level + 2)


def _rules() -> Iterator[str]:
    """The rules that `compression.adapt` takes."""
    yield "### Rules that adapt compression"
    yield (
        "`compression.adapt` is a rule, named by its key `by`, such as `{by: phase, to: 0.01}`. The level, a ratio or "
        "a rank, lies between the section's own and the rule's `to`."
    )
    for name in ADAPTERS.names():
        yield f"#### `by: {name}`"
        yield text(docstring(ADAPTERS.config(name)))
        yield keys_table([key for key in keys_of(ADAPTERS.config(name), "") if key.name != ADAPTERS.key])


def _detectors() -> Iterator[str]:
    """The detectors, which stand within other sections, with what all have and what each has."""
    yield "### Detectors of critical phases"
    yield (
        "Where a key takes a detector, it is named, `log_ratio`, or given with its keys, "
        "`{name: accordion, interval_epochs: 1}`. All have:"
    )
    shared = [key for key in keys_of(DetectorConfig, "") if key.name != DETECTORS.key]
    yield keys_table(shared)
    for name in DETECTORS.names():
        config = DETECTORS.config(name)
        yield f"#### `{name}`"
        yield text(docstring(config))
        averaging = f"of an averaging under SelSync {config.averaging_threshold:.3g}"
        yield f"Thresholds: {config.scaler_threshold:.3g}; {averaging}."
        own = [key for key in keys_of(config, "", {DETECTORS.key: name}) if key.name not in fields_of(DetectorConfig)]
        if own:
            yield keys_table(own)


def _choice(key: str, names: list[str], default: str | None) -> str:
    told = f" Default: `{default}`." if default else ""
    return f"`{key}` is one of {', '.join(f'`{name}`' for name in names)}.{told}"


def _grouped(registry: Registry[Any]) -> list[tuple[list[str], Component[Any]]]:
    """Components, those together that share both config and what makes them."""
    groups: dict[Component[Any], list[str]] = {}
    for name in registry.names():
        found = registry.find(name)
        assert found is not None
        groups.setdefault(found, []).append(name)
    return [(names, found) for found, names in groups.items()]


def _described(registry: Registry[Any], found: Component[Any]) -> str:
    """What is said of a component: by its config, or by what makes it where others share the config."""
    makers = {other.make for _, other in _grouped(registry) if other.config is found.config}
    return docstring(found.config if len(makers) == 1 else found.make)


def _union(section: str, field: Any) -> Iterator[str]:
    """A section that is one of several, told apart by a key."""
    yield f"### `{section}`"
    key = field.discriminator
    branches = {get_args(found.model_fields[key].annotation)[0]: found for found in _inner(field)}
    yield _choice(key, list(branches), getattr(field.default, key, None))
    for name, branch in branches.items():
        yield f"#### `{section}.{key}: {name}`"
        yield text(docstring(branch))
        own = [row for row in keys_of(branch, f"{section}.", {key: name}) if row.name != key]
        if own:
            yield keys_table(own)
