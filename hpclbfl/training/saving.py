"""When a run saves its state, and with what a resuming job is compared."""

from __future__ import annotations

import time

from hpclbfl.core.errors import ConfigError, DataError
from hpclbfl.runs.checkpoint import CheckpointStore, Found
from hpclbfl.runs.fingerprint import Identity, checked_identity, differences, identity
from hpclbfl.training.fitting import check_fits
from hpclbfl.training.snapshot import restore, take
from hpclbfl.training.state import Experiment


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


def resume(exp: Experiment, store: CheckpointStore) -> tuple[Found | None, list[str]]:
    """Put the experiment where its newest whole checkpoint left it; a collective.

    Returns:
        The checkpoint, if there was one, and a line about each that was passed over.

    Raises:
        ConfigError: it belongs to another experiment.
        DataError: there are checkpoints, and none can be used.
    """

    def take_up(found: Found) -> None:
        # Another experiment's is not damaged; an older one would not be this one's, either.
        if not differences_from(exp, found.identity):
            check_fits(exp, found.step, found.shared, found.clients)
            # Whatever it changed, an older one puts in its place.
            restore(exp, found.shared, found.clients)

    found, problems = store.load([client.id for client in exp.clients], take_up)
    if found is None and problems:
        raise DataError(
            f"{store.folder}: no checkpoint can be used: {'; '.join(problems)}; '--resume never' sets them aside and "
            "starts anew"
        )
    if found is None:
        return None, problems
    if other := differences_from(exp, found.identity):
        raise ConfigError(
            f"{store.folder}: the checkpoint at step {found.step} belongs to another experiment: {other}; give "
            "another --run-dir, or '--resume never' to start anew"
        )
    return found, problems


def differences_from(exp: Experiment, other: Identity) -> str:
    """Which keys tell this experiment from another one; see `identity.differences` and `identity.checked_identity`."""
    other = checked_identity(other)
    own = identity(exp.job, exp.dataset.fingerprint)
    return differences(other, own, exp.job, exp.global_batch_size, exp.num_train)
