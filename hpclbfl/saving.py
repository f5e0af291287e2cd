"""When a run saves its state, and with what a resuming job is compared."""

from __future__ import annotations

import time
from typing import Any

from hpclbfl.checkpoint import CheckpointStore, Found
from hpclbfl.config import JobConfig
from hpclbfl.errors import ConfigError
from hpclbfl.experiment import Experiment
from hpclbfl.snapshot import restore, take


class Saver:
    """Saves an experiment at its intervals.

    Args:
        exp: the experiment.
        store: where to.
    """

    def __init__(self, exp: Experiment, store: CheckpointStore) -> None:
        self._exp, self._store = exp, store
        self._identity = identity(exp.job, exp.dataset.fingerprint)
        self._last = time.monotonic()
        self.count, self.seconds = 0, 0.0
        """Checkpoints saved, and the time that it took."""

    def asks(self) -> bool:
        """Whether this rank, the first one, finds that it is time by its clock."""
        every = self._exp.job.checkpoint.every_s
        return every is not None and self._exp.comm.rank == 0 and time.monotonic() - self._last >= every

    def is_due(self, was_asked: bool) -> bool:
        """Whether a checkpoint follows the step just taken; equal on all ranks."""
        every = self._exp.job.checkpoint.every_steps
        return was_asked or (every is not None and self._exp.counters.step % every == 0)

    def save(self) -> None:
        """A collective. Raises EnvironmentFault where a rank cannot write."""
        begin = time.monotonic()
        self._store.save(self._exp.counters.step, self._identity, *take(self._exp))
        self._last = time.monotonic()
        self.seconds += self._last - begin
        self.count += 1


def identity(job: JobConfig, data_fingerprint: str) -> dict[str, Any]:
    """What must be equal for a job to go on from another's checkpoint."""
    return job.scientific(data_fingerprint)


def resume(exp: Experiment, store: CheckpointStore, mode: str) -> tuple[Found | None, list[str]]:
    """Put the experiment where its newest whole checkpoint left it; a collective.

    Args:
        mode: auto: if there is one; must: or fail; never: start anew.

    Returns:
        The checkpoint, if there was one, and a line about each damaged one.

    Raises:
        ConfigError: it belongs to another experiment, or there is none and there must be.
    """
    if mode == "never":
        return None, []
    found, problems = store.load([client.id for client in exp.clients])
    if found is None:
        if mode == "must":
            raise ConfigError(f"--resume must: {store.folder} holds no checkpoint that can be read")
        return None, problems
    differing = _differences(found.identity, identity(exp.job, exp.dataset.fingerprint))
    if differing:
        raise ConfigError(
            f"{store.folder}: the checkpoint at step {found.step} belongs to another experiment: "
            f"{'; '.join(differing[:4])}; give another --run-dir, or --resume never to start anew"
        )
    restore(exp, found.shared, found.clients)
    return found, problems


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """`key: old, now new` of every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [line for key in keys for line in _differences(old.get(key), new.get(key), f"{path}.{key}".strip("."))]
    return [] if _plain(old) == _plain(new) else [f"{path} was {_plain(old)}, now {_plain(new)}"]


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
