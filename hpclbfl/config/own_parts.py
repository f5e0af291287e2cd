"""Components of the user's own, `model: {name: nets.py:WideNet, width: 4}`: found, checked, and made one of a kind.

The class has a `Config`, a section that is derived from the base of its kind (`hpclbfl.config.sections`), or takes that
base itself; and it is made with what the kind's built-in makers get, see `hpclbfl.config.components`. What can be wrong
with it is said in one line, before anything else of the job is looked at.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from hpclbfl.config.own_sources import (
    MAX_BYTES,
    Source,
    described,
    execute,
    import_module,
    known_file,
    read_copy,
    read_file,
    remember,
)
from hpclbfl.config.part_names import PartName, find_names, parse_name, with_names
from hpclbfl.config.sections.base import Section
from hpclbfl.config.validation import suggestion, validated
from hpclbfl.core.errors import ConfigError, DataError, HpclbflError
from hpclbfl.core.files import read_bytes
from hpclbfl.core.registry import Component, Registry
from hpclbfl.core.text import MAX_SHOWN, printable, shown

Model = TypeVar("Model", bound=Section)


@dataclass(frozen=True)
class Lookup:
    """Where a job's own parts are looked for."""

    folders: tuple[Path, ...] = ()
    """That may hold copies."""
    copies_only: bool = False
    """Whether a name without a hash is refused: what a run folder names lies in it."""


NOWHERE = Lookup()
_modules: dict[str, Source] = {}
"""Modules that this process has imported for a job, by name."""


def find_own(registry: Registry[Any], name: str, where: str, lookup: Lookup) -> str:
    """Find the class that a name with a colon stands for, and enter it into the registry.

    Args:
        where: begins the line of an error: file and key.
        lookup: where copies may lie.

    Returns:
        The name that also says which source it is.

    Raises:
        ConfigError: there is no such class, or it is not of this kind; one line.
    """
    part = parse_name(name)
    if part is None or not name.isprintable():
        raise ConfigError(
            f"{where}: {shown(name)} names no part of your own: write file.py:Class, or package.module:Class"
        )
    if registry.interface is None:
        raise ConfigError(f"{where}: {shown(name)}: there is no {registry.what} of one's own")
    if part.sha256 is None and lookup.copies_only:
        raise ConfigError(f"{where}: {shown(name)} lies outside the run folder: the names in it have a checksum")
    source, module = _module(part, where, lookup)
    full = replace(part, source=source.name, sha256=source.digits)
    if registry.find(str(full)) is None:
        registry.add_own(str(full), _component(registry, full, source, module, where))
    return str(full)


def _module(part: PartName, where: str, lookup: Lookup) -> tuple[Source, ModuleType]:
    if part.is_file:
        if part.sha256 is None:
            path, advice = Path(part.source), "a path is relative to the job file, on the command line to this folder"
            source = read_file(path, where, advice)
        else:
            source = read_copy(part, lookup.folders, where)
        return source, execute(source, where)
    source, module = import_module(part.source, where)
    _modules[part.source] = source
    if part.sha256 not in (None, source.digits):
        version = "" if source.version is None else f", version {source.version},"
        raise ConfigError(
            f"{where}: {printable(part.source)}{version} is not the one that this job was made with (its hash was "
            f"{part.sha256}, now {source.digits}): install that one again, or start a new run"
        )
    return source, module


def _component(
    registry: Registry[Any], part: PartName, source: Source, module: ModuleType, where: str
) -> Component[Any]:
    interface = registry.interface
    if interface is None:
        raise LookupError(registry.what)
    file, name = printable(source.place), part.class_name
    kind = getattr(module, name, None)
    if kind is None:
        own = sorted(key for key, value in vars(module).items() if _is_own_class(value, module))
        there = f"it has {', '.join(own)}" if own else "it has none"
        raise ConfigError(f"{where}: {file}: has no class {name!r}: {suggestion(name, own)}{printable(there)}")
    if not inspect.isclass(kind):
        raise ConfigError(f"{where}: {file}: {name!r} is no class, but {printable(type(kind).__name__)}")
    config = getattr(kind, "Config", interface.config)
    if not inspect.isclass(config) or not issubclass(config, interface.config):
        base = f"{interface.config.__module__}.{interface.config.__qualname__}"
        raise ConfigError(f"{where}: {file}: {name}.Config is no config of this kind: derive it from {base}")
    if lacking := interface.missing(kind):
        raise ConfigError(f"{where}: {file}: {name} is no {registry.what}: it {printable(lacking, MAX_SHOWN)}")

    def make(config: Any, *args: Any, **keys: Any) -> Any:
        try:
            return interface.make(kind, config, *args, **keys)
        except (HpclbflError, MemoryError):
            raise
        except Exception as error:
            raise ConfigError(described(error, source, f"{name} cannot be made")) from error

    return Component(config, make)


def own_config(config: type[Model], values: dict[str, Any], source: str, section: str) -> Model:
    """Validate the keys of an own part with its config, whose validators are the user's, too.

    Raises:
        ConfigError: a key or value is wrong, the config fails, or it holds what a job file cannot.
    """
    try:
        found = validated(config, values, source, (section,))
        # Parts within it have been looked at on their own.
        inner = {key: value for key, value in dict(found).items() if isinstance(value, Section)}
        again = config.model_validate({**found.model_dump(mode="json"), **inner})
    except HpclbflError:
        raise
    except Exception as error:
        told = printable(f"{type(error).__name__}: {error}", MAX_SHOWN)
        raise ConfigError(f"{printable(source)}: {section}: {config.__qualname__} fails: {told}") from error
    if again != found:
        raise ConfigError(
            f"{printable(source)}: {section}: {config.__qualname__} gives other values when it is read again: give "
            "its keys plain values, and let its validators leave alone what they have made"
        )
    return found


def _is_own_class(value: Any, module: ModuleType) -> bool:
    return inspect.isclass(value) and value.__module__ == module.__name__


def sources(job: Mapping[str, Any]) -> dict[tuple[str, ...], tuple[PartName, Source]]:
    """The own parts of a validated job, which this process has loaded, by the keys that lead to them.

    Args:
        job: its values as they are dumped.
    """
    found = {}
    for path, part in find_names(job):
        source = known_file(part.sha256 or "", part.source) if part.is_file else _modules.get(part.source)
        if part.sha256 is not None and source is not None:
            found[path] = part, source
    return found


def part_texts(job: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The files of a validated job's own parts, for another process: place and content of each."""
    found = [source for part, source in sources(job).values() if part.is_file]
    return [(source.place, source.content.decode("utf-8", "surrogateescape")) for source in found]


def as_written(job: Mapping[str, Any]) -> dict[str, Any]:
    """A validated job's values with its own parts as a job file anywhere may name them, by absolute paths."""
    names = {
        path: replace(part, source=source.place if part.is_file else part.source, sha256=None)
        for path, (part, source) in sources(job).items()
    }
    found: dict[str, Any] = with_names(job, names)
    return found


def pinned(values: dict[str, Any], held: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Let a job that goes on in a run folder take the copies that the run began with.

    Args:
        values: the job, its files as absolute paths.
        held: the job that the folder holds.
        folder: of the run.

    Returns:
        The job, and a line about each file that has changed since.
    """
    before = dict(find_names(held))
    names, notes = {}, []
    for path, part in find_names(values):
        # One that a job names without keys is written with a key `name`.
        old = before.get(path, before.get((*path, "name")))
        if not part.is_file or part.sha256 is not None or old is None or old.sha256 is None or old.brief != part.brief:
            continue
        names[path] = old
        problem = _differs(Path(part.source), old)
        if problem:
            notes.append(
                f"{'.'.join(path)}: {printable(part.source)} {problem}: the run goes on with its copy in "
                f"{printable(folder)}; '--resume never' starts anew with the file"
            )
    found: dict[str, Any] = with_names(values, names)
    return found, notes


def _differs(path: Path, old: PartName) -> str:
    """What has become of a file since its copy was made; empty: nothing."""
    try:
        content = read_bytes(path, MAX_BYTES)
    except FileNotFoundError:
        return "is gone"
    except DataError as error:
        return f"cannot be read ({printable(error)})"
    # It stands in for a copy that is lost.
    return "" if remember(content, path).digits == old.sha256 else "has changed since the run began"
