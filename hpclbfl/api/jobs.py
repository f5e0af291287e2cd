"""Jobs in a script: from a file or from values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from pydantic import BaseModel

from hpclbfl.config import job as jobs
from hpclbfl.config.job import JobConfig
from hpclbfl.core.errors import ConfigError
from hpclbfl.core.text import shown


def load_job(path: str | Path, overrides: Mapping[str, Any] | Sequence[str] = ()) -> JobConfig:
    """Read a job file.

    Args:
        path: the file; relative paths in it are relative to its folder.
        overrides: values by key, `{"optimizer.lr": 0.3}`, or as on the command line, `["optimizer.lr=0.3"]`; relative
            paths in them are relative to the working folder.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong; one line that names it.
    """
    if isinstance(overrides, str):
        raise ConfigError(f"overrides: a mapping or a list of texts, not {shown(overrides)}")
    given = _plain(overrides) if isinstance(overrides, Mapping) else [str(word) for word in overrides]
    return jobs.load_job(Path(path), given)


def make_job(sections: Mapping[str, Any] | None = None, /, **more: Any) -> JobConfig:
    """Build a job from its sections: `make_job(data={"name": "digits"}, model={"name": "resnet8"}, clients=4)`.

    Args:
        sections: what a job file would hold; relative paths are relative to the working folder.
        more: further sections; they replace those of the same name.

    Raises:
        ConfigError: a key or value is wrong; one line that names it.
    """
    values = _plain({**(sections or {}), **more})
    return jobs.with_paths(jobs.parse_job(values, "make_job"), Path.cwd(), Path.cwd(), ())


def _plain(value: Any) -> Any:
    """Convert paths, tuples, numpy's numbers and sections of other jobs to the types that YAML has."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value) if isinstance(value, PurePath) else value
