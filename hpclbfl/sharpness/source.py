"""The state of a run to examine: the trained model of a finished run, else the newest checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpclbfl.core.errors import ConfigError
from hpclbfl.core.jsonfile import read_json
from hpclbfl.runs.folder import RunFolder, checkpoint_steps


@dataclass(frozen=True)
class Source:
    """A run and its newest state."""

    folder: RunFolder
    finished_step: int | None
    """Optimizer steps of a finished run, whose averaged net is model.pt; None: a checkpoint is to be read."""
    model_checksum: str | None
    """SHA-256 of model.pt; None: unknown, as in runs of older versions."""
    run_hash: str
    """Of the experiment; empty if unknown."""
    data_fingerprint: str
    """Of the training data; empty if unknown."""


def find_source(run: Path) -> Source:
    """Look into a run folder without reading the model.

    Raises:
        ConfigError: it is no run folder, or holds no state to look at.
    """
    folder = RunFolder(run)
    if not folder.config.is_file():
        raise ConfigError(f"{run}: no run folder: it has no config.yaml; give the folder that 'hpclbfl train' wrote")
    done = folder.done()
    finished_step, checksum = None, None
    if done is not None and folder.model.is_file():
        finished_step, checksum = done.step, done.files.get("model.pt")
    elif not checkpoint_steps(folder.checkpoints):
        raise ConfigError(
            f"{run}: holds no checkpoint and no finished model; let the run finish, or set checkpoint.every_steps"
        )
    attempts = folder.attempts()
    found = (read_json(attempts[-1].provenance, dict) if attempts else None) or {}
    texts = {key: value for key, value in found.items() if isinstance(value, str)}
    return Source(folder, finished_step, checksum, texts.get("hash", ""), texts.get("data_fingerprint", ""))
