"""The small files of a run, validated: config.yaml, status.json, DONE.json and provenance.json.

The values have the types and bounds that the analysis relies on: numbers that fit its columns, texts of one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field

from hpclbfl.analysis.read.configs import KEY, flatten
from hpclbfl.analysis.read.scan import Kind
from hpclbfl.config.migrate import migrated
from hpclbfl.core.errors import DataError
from hpclbfl.core.files import read_bytes
from hpclbfl.core.jsonfile import parse_json
from hpclbfl.core.text import printable, shown
from hpclbfl.core.yamlfile import parse_mapping
from hpclbfl.runs.log.coverage import NO_LIMIT

MAX_BYTES = 1 << 20
"""Of one file."""
MAX_KEYS = 1000
"""Of a job, over all sections."""
SECTIONS = (
    *("data", "partition", "model", "sync", "gradients", "compression", "optimizer", "schedule", "loss", "batching"),
    *("emulate", "stop", "evaluate", "checkpoint", "comm"),
)
"""Keys of a job whose value is a section."""
_WHOLE_NUMBERS = {"seed": 0, "clients": 1}
"""Keys of a job by which runs are counted or paired, with their least values."""
_NUMBERS = ("gradients.scaler.threshold", "gradients.scaler.factor")

Text = Annotated[str, AfterValidator(printable)]
Count = Annotated[int, Field(ge=0, lt=NO_LIMIT)]
Measure = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Status:
    """status.json."""

    state: Text = "unknown"
    error: Text | None = None


@dataclass(frozen=True)
class Done:
    """DONE.json."""

    step: Count | None = None
    epoch: Measure | None = None
    top1: Share | None = None
    elapsed_s: Measure | None = None
    reason: Text | None = None
    hash: Text | None = None


@dataclass(frozen=True)
class Git:
    """State of the checkout, if there is one."""

    commit: Text | None = None
    dirty: bool | None = None


@dataclass(frozen=True)
class Cpu:
    """The processor."""

    model: Text | None = None


@dataclass(frozen=True)
class Versions:
    """Versions of packages."""

    torch: Text | None = None
    horovod: Text | None = None


@dataclass(frozen=True)
class OwnPart:
    """A component of the user's own."""

    name: Text | None = None
    sha256: Text | None = None
    version: Text | None = None


@dataclass(frozen=True)
class Provenance:
    """provenance.json of an attempt."""

    time: Text | None = None
    engine: Text | None = None
    host: Text | None = None
    device: Text | None = None
    platform: Text | None = None
    python: Text | None = None
    hpclbfl: Text | None = None
    mpi_library: Text | None = None
    data_fingerprint: Text | None = None
    hash: Text | None = None
    num_ranks: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    num_test: Count | None = None
    message_bytes: Count | None = None
    resumed_from_step: Count | None = None
    git: Git | None = None
    cpu: Cpu | None = None
    versions: Versions | None = None
    gpus: list[Text] | None = None
    own_parts: list[OwnPart] | None = None
    argv: list[Text] | None = None


_KINDS: dict[Kind, type[Any]] = {"status": Status, "done": Done, "provenance": Provenance}
_Record = TypeVar("_Record", Status, Done, Provenance)


def read_record(path: Path, kind: type[_Record]) -> _Record:
    """Read one of the JSON files.

    Raises:
        FileNotFoundError: it does not exist.
        DataError: it cannot be read or has a wrong value; one line that names the file.
    """
    return parse_json(read_bytes(path, MAX_BYTES), kind, str(path))


def read_plain(path: Path, kind: Kind) -> dict[str, Any]:
    """Read a small file as JSON values: the fields of a record, or the keys of a job (see `flat_job`).

    Raises:
        FileNotFoundError: it does not exist.
        HpclbflError: it cannot be read or has a wrong value; one line that names the file.
    """
    if kind == "config":
        content = read_bytes(path, MAX_BYTES)
        return flat_job(parse_mapping(content, str(path), "a job is a mapping of keys to values"), str(path))
    return asdict(read_record(path, _KINDS[kind]))


def flat_job(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A job as dotted keys: numbers, booleans, texts of one line or None; lists become compact JSON.

    Raises:
        DataError: a value that the analysis uses has another type; the line begins with `source`.
    """
    for key, value in config.items():
        if not KEY.fullmatch(key):
            raise DataError(f"{source}: {shown(key)} is not a key of a job")
        if key in SECTIONS and not isinstance(value, Mapping | None):
            raise DataError(f"{source}: {key}: is {shown(value)}, a section is a mapping of keys to values")
    try:
        job = flatten(migrated(config))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: has a value that contains itself, or too deeply nested lists") from error
    if len(job) > MAX_KEYS:
        raise DataError(f"{source}: has more than {MAX_KEYS:,} keys")
    for key, least in _WHOLE_NUMBERS.items():
        value = job.get(key)
        if value is not None and not (type(value) is int and least <= value < 2**63):
            raise DataError(f"{source}: {key}: is {shown(value)}, must be a whole number from {least} up")
    for key in _NUMBERS:
        value = job.get(key)
        if value is not None and type(value) not in (int, float):
            raise DataError(f"{source}: {key}: is {shown(value)}, must be a number")
    return job
