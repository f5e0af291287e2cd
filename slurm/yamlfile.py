"""Reading sweeps and cluster profiles, whose values go to axes and to Slurm as they are, unlike a job's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from hpclbfl.core import yamlfile


class _Loader(yamlfile.Loader):
    """YAML without its traps: 1e-4 is a number, and 1:30:00 is a time and no number."""


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"^[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^[-+]?(\.[0-9]+([eE][-+]?[0-9]+)?|[0-9]+\.[0-9]*([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf|\.nan)$"
    ),
    list("-+.0123456789"),
)


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """Read a sweep or a cluster profile (`what`), with the errors of `hpclbfl.core.yamlfile.read_mapping`."""
    return yamlfile.read_mapping(path, f"not {what}", _Loader)
