"""The detectors of critical phases that a job names, wherever they stand.

A section names one by a key of type `DetectorName`, and measures it itself, or of type `WatchedDetector`: it is then
measured once in every step, whoever else names it, and `hpclbfl.gradients.chain.Chain.change_of` tells the change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hpclbfl.config.component_configs import detector_config, nested_mark
from hpclbfl.config.part_names import brief
from hpclbfl.config.sections.base import Section
from hpclbfl.config.sections.gradients import DetectorConfig

MAX_LABEL = 50
"""Characters; the log's texts are short."""


@dataclass(frozen=True)
class NamedDetector:
    """A detector where a job names it."""

    key: str
    """Of the job, such as `gradients.scaler.change`."""
    config: DetectorConfig
    watched: bool
    """Whether it is measured for whoever names it."""
    threshold: float
    """Of its change, from which it fires."""


@dataclass(frozen=True)
class Watched:
    """A detector that is measured in every step."""

    label: str
    """Unlike those of the others: its name, with its keys where several have the same name."""
    config: DetectorConfig
    threshold: float
    """Of its change, from which it fires for the log: of the first key that names it, `gradients.watch` before others.
    Whoever asks for the change has a threshold of their own."""


def named_detectors(section: Section, prefix: str = "") -> Iterator[NamedDetector]:
    """All detectors that a job, or a section of it, names.

    Args:
        section: validated.
        prefix: of its keys.
    """
    for name, field in type(section).model_fields.items():
        value, mark, where = getattr(section, name), nested_mark(field), f"{prefix}{field.alias or name}"
        many = isinstance(value, tuple)
        for place, entry in enumerate(value if many else (value,)):
            where_it = f"{where}.{place}" if many else where
            if mark is not None and mark.kind == "detector" and entry is not None and entry not in mark.words:
                yield _named(section, where_it, entry, mark.watched)
            elif isinstance(entry, Section):
                yield from named_detectors(entry, f"{where_it}.")


def _named(section: Section, key: str, name: Any, watched: bool) -> NamedDetector:
    config = detector_config(name)
    stated = config.threshold if config.threshold is not None else getattr(section, "threshold", None)
    return NamedDetector(key, config, watched, config.scaler_threshold if stated is None else stated)


def watched_detectors(job: Section) -> tuple[Watched, ...]:
    """The detectors that a job's steps measure besides the scaler's and SelSync's, each once.

    Raises:
        ValueError: `gradients.watch` lists one twice, or two cannot be told apart in the log.
    """
    named = [found for found in named_detectors(job) if found.watched]
    named.sort(key=lambda found: not _is_listed(found))
    distinct: list[tuple[DetectorConfig, NamedDetector]] = []
    for found in named:
        config = without_threshold(found.config)
        if all(config != other for other, _ in distinct):
            distinct.append((config, found))
        elif _is_listed(found):
            raise ValueError(f"{found.key}: {brief(config.name)} is listed already, with the same keys")
    names = [brief(config.name) for config, _ in distinct]
    labels = [
        (name if names.count(name) == 1 else f"{name}{_keys(config)}")[:MAX_LABEL]
        for name, (config, _) in zip(names, distinct, strict=True)
    ]
    if twice := next((label for label in labels if labels.count(label) > 1), ""):
        raise ValueError(f"two detectors are called {twice!r}; their names in the log would be the same")
    return tuple(
        Watched(label, config, found.threshold) for label, (config, found) in zip(labels, distinct, strict=True)
    )


def _is_listed(found: NamedDetector) -> bool:
    return found.key.startswith("gradients.watch.")


def without_threshold(detector: str | DetectorConfig) -> DetectorConfig:
    """What a detector measures: its config, whatever the threshold."""
    return detector_config(detector).model_copy(update={"threshold": None})


def _keys(config: DetectorConfig) -> str:
    values = config.model_dump(mode="json", exclude={"name", "threshold"})
    return "".join(f" {key}={value}" for key, value in values.items())


def check_detectors(job: Any) -> None:
    """Refuse a job, a `JobConfig`, that does not fit a detector that it names. Raises ValueError."""
    for found in named_detectors(job):
        found.config.check(found.key, job)
        if found.watched and not job.gradients.measure:
            raise ValueError(f"{found.key}: needs 'gradients.measure: true'")
    watched_detectors(job)
