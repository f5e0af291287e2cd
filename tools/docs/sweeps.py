"""The reference of sweep files and cluster profiles."""

from __future__ import annotations

from hpclbfl.slurm.resources import ProfileConfig, ResourcesConfig
from hpclbfl.slurm.sweep_file import SweepConfig
from tools.docs.keys import Config, keys_of, keys_table

TITLES: dict[str, Config] = {
    "The sweep file": SweepConfig,
    "`resources` of a sweep": ResourcesConfig,
    "The cluster profile": ProfileConfig,
}


def sweeps() -> str:
    """The reference, as Markdown."""
    wanted = {key.name for key in keys_of(ResourcesConfig)}
    parts = []
    for title, config in TITLES.items():
        keys = keys_of(config)
        # What a sweep may say too stands there.
        own = [key for key in keys if config is ResourcesConfig or key.name not in wanted]
        parts += [f"### {title}", keys_table(own)]
    return "\n\n".join(parts)
