"""The fingerprint of an experiment, and that of the experiment in a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from hpclbfl.config.component_configs import component_config
from hpclbfl.config.components import SCHEDULES
from hpclbfl.config.job import JobConfig, parse_job
from hpclbfl.config.migrate import migrated
from hpclbfl.config.own_parts import Lookup
from hpclbfl.config.sections import StopConfig
from hpclbfl.core.errors import ConfigError, DataError, HpclbflError
from hpclbfl.core.jsonfile import read_json
from hpclbfl.core.yamlfile import read_mapping
from hpclbfl.optim.schedule import planned_epochs
from hpclbfl.runs.folder import RunFolder

Fingerprint = dict[str, Any]
"""`JobConfig.scientific` as JSON values; stands in provenance.json and MANIFEST.json under the key `identity`."""

_SHOWN = 4
"""Differing keys that a message lists."""


def fingerprint_of(job: JobConfig, data_fingerprint: str) -> Fingerprint:
    """What must agree for a job to continue in the run folder of another."""
    found: Fingerprint = _plain(job.scientific(data_fingerprint))
    return found


@dataclass(frozen=True)
class Identity:
    """Which experiment a run is."""

    digest: str
    """See `JobConfig.digest`."""
    former_digest: str
    """That of version 0.1."""
    fingerprint: Fingerprint


def identity_of(job: JobConfig, given: JobConfig, data_fingerprint: str) -> Identity:
    """Which experiment a job is.

    Args:
        job: the end of its schedule resolved.
        given: as the user gave it.
        data_fingerprint: of its data.
    """
    digest, former = job.digest(data_fingerprint), given.former_digest(data_fingerprint)
    return Identity(digest, former, fingerprint_of(job, data_fingerprint))


def read_job(folder: RunFolder) -> JobConfig:
    """The job in a run folder of any version; its own parts are imported from their copies there.

    Raises:
        ConfigError: there is none, or it is not valid.
    """
    lookup = Lookup((folder.path,), copies_only=True)
    return parse_job(migrated(read_mapping(folder.config, "not a job")), str(folder.config), lookup)


def held_experiment(folder: RunFolder) -> Fingerprint | None:
    """The experiment in a run folder, whatever its state; None if nothing was trained there.

    It is read from the newest attempt's provenance; in folders of older versions, from config.yaml.

    Raises:
        DataError: something was trained there, and nothing says which experiment it was; one line.
    """
    if folder.is_empty():
        return None
    data_fingerprint = ""
    for attempt in reversed(folder.attempts()):
        try:
            provenance = read_json(attempt.provenance, dict) or {}
        except DataError:
            continue
        with suppress(DataError):
            if (found := provenance.get("identity")) is not None:
                return checked_fingerprint(found)
        data_fingerprint = data_fingerprint or str(provenance.get("data_fingerprint", ""))
    try:
        if not folder.config.exists():
            raise DataError(f"{folder.path}: has neither config.yaml nor a readable provenance.json")
        job = read_job(folder)
        return {**fingerprint_of(job, data_fingerprint), "stop": job.stop.model_dump(mode="json")}
    except HpclbflError as error:
        raise DataError(
            f"{folder.path}: cannot tell which experiment this run folder holds: {error}; give another --run-dir, or "
            "'--resume never', which sets it aside"
        ) from error


def checked_fingerprint(found: Any) -> Fingerprint:
    """A fingerprint from a file, checked and brought to the present version.

    Raises:
        DataError: it cannot be compared with another.
    """
    sections = ("data", "schedule")
    if not isinstance(found, dict) or not all(isinstance(found.get(name), dict) for name in sections):
        raise DataError("its fingerprint is not valid")
    if "stop" in found:
        try:
            StopConfig.model_validate(found["stop"])
        except ValidationError as error:
            raise DataError("its fingerprint is not valid: its stop cannot be read") from error
    return migrated(found)


def differences(old: Fingerprint, new: Fingerprint, job: JobConfig, global_batch_size: int, num_train: int) -> str:
    """The keys in which two experiments differ, `optimizer.lr was 0.1, now 0.2; ...`; empty if they are the same.

    Args:
        old: of the run folder or checkpoint. If an older version wrote it, it includes `stop`, which may determine the
            end of its schedule.
        new: of the job.
        job: the job itself.
        global_batch_size: B of the job, samples.
        num_train: N, size of its training set.
    """
    if not old.get("data", {}).get("fingerprint"):
        # The folder does not say which data it was, so they are not compared.
        old = {**old, "data": {**old.get("data", {}), "fingerprint": new["data"]["fingerprint"]}}
    if "stop" in old:
        old = {**old}
        stop = old.pop("stop")
        # The end of the schedule that the older version derived, on the same data.
        former = job.model_copy(update={"stop": StopConfig.model_validate(stop)})
        with suppress(ConfigError):
            schedule = component_config(SCHEDULES, old.get("schedule"), "", "schedule")
            end = planned_epochs(former, global_batch_size, num_train)
            old["schedule"] = schedule.with_end(end).model_dump(mode="json")
    found = _differing(old, new)
    shown = "; ".join(found[:_SHOWN])
    return f"{shown}; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else shown


def _differing(old: Any, new: Any, path: str = "") -> list[str]:
    """`key was old, now new` for every leaf that differs."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted(old.keys() | new.keys())
        return [line for key in keys for line in _differing(old.get(key), new.get(key), f"{path}.{key}".strip("."))]
    return [] if _plain(old) == _plain(new) else [f"{path} was {_plain(old)}, now {_plain(new)}"]


def _plain(value: Any) -> Any:
    """A value as it comes back from JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
