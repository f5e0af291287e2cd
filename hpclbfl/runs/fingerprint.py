"""What identifies an experiment, and which one a run folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
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

Identity = dict[str, Any]
"""`JobConfig.scientific`, as JSON gives it back."""

_SHOWN = 4
"""Keys of a difference."""


def identity(job: JobConfig, data_fingerprint: str) -> Identity:
    """What must agree for a job to continue in the run folder of another."""
    found: Identity = _plain(job.scientific(data_fingerprint))
    return found


def read_job(folder: RunFolder) -> JobConfig:
    """Return the job that a run folder of any version holds; its own parts are imported from their copies in it.

    Raises:
        ConfigError: it has none, or one that is not valid.
    """
    lookup = Lookup((folder.path,), copies_only=True)
    return parse_job(migrated(read_mapping(folder.config, "not a job")), str(folder.config), lookup)


def held_experiment(folder: RunFolder) -> Identity | None:
    """Which experiment a run folder holds, whatever its state; None if nothing was trained there.

    It is read from the newest attempt's provenance, in folders of older versions from config.yaml.

    Raises:
        DataError: there is one, and it cannot be told which; one line.
    """
    if folder.is_empty():
        return None
    fingerprint = ""
    for attempt in reversed(folder.attempts()):
        try:
            provenance = read_json(attempt.provenance, dict) or {}
        except DataError:
            continue
        with suppress(DataError):
            if (found := provenance.get("identity")) is not None:
                return checked_identity(found)
        fingerprint = fingerprint or str(provenance.get("data_fingerprint", ""))
    try:
        if not folder.config.exists():
            raise DataError(f"{folder.path}: has no config.yaml and no attempt that tells")
        job = read_job(folder)
        return {**identity(job, fingerprint), "stop": job.stop.model_dump(mode="json")}
    except HpclbflError as error:
        raise DataError(
            f"{folder.path}: which experiment this run folder holds cannot be told: {error}; give another --run-dir, "
            "or '--resume never', which sets it aside"
        ) from error


def checked_identity(found: Any) -> Identity:
    """The experiment that a file describes, if it can be compared with another.

    Raises:
        DataError: it is none.
    """
    sections = ("data", "schedule")
    if not isinstance(found, dict) or not all(isinstance(found.get(name), dict) for name in sections):
        raise DataError("its identity is no experiment's")
    if "stop" in found:
        try:
            StopConfig.model_validate(found["stop"])
        except ValidationError as error:
            raise DataError("its identity is no experiment's: its stop is none") from error
    return migrated(found)


def differences(old: Identity, new: Identity, job: JobConfig, global_batch_size: int, num_train: int) -> str:
    """Say which keys tell two experiments apart, `optimizer.lr was 0.1, now 0.2; ...`; empty: they are the same.

    Args:
        old: of the run folder or checkpoint; one of an older version covers `stop`, and its schedule may end there.
        new: of the job.
        job, global_batch_size, num_train: what the new one was made of.
    """
    if not old.get("data", {}).get("fingerprint"):
        # Nothing in the folder says so.
        old = {**old, "data": {**old.get("data", {}), "fingerprint": new["data"]["fingerprint"]}}
    if "stop" in old:
        old = {**old}
        stop = old.pop("stop")
        # As the older version ended it, on the same data.
        former = job.model_copy(update={"stop": StopConfig.model_validate(stop)})
        with suppress(ConfigError):
            schedule = component_config(SCHEDULES, old.get("schedule"), "", "schedule")
            end = planned_epochs(former, global_batch_size, num_train)
            old["schedule"] = schedule.with_end(end).model_dump(mode="json")
    found = _differing(old, new)
    shown = "; ".join(found[:_SHOWN])
    return f"{shown}; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else shown


def _differing(old: Any, new: Any, path: str = "") -> list[str]:
    """`key was old, now new` of every leaf that differs."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted(old.keys() | new.keys())
        return [line for key in keys for line in _differing(old.get(key), new.get(key), f"{path}.{key}".strip("."))]
    return [] if _plain(old) == _plain(new) else [f"{path} was {_plain(old)}, now {_plain(new)}"]


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
