"""When a run saves its state, and with what a resuming job is compared."""

from __future__ import annotations

import time

from hpclbfl.core.errors import ConfigError, DataError
from hpclbfl.runs.checkpoint import CheckpointStore, Found
from hpclbfl.runs.fingerprint import Fingerprint, checked_fingerprint, differences
from hpclbfl.training.snapshot import load_state, state_of
from hpclbfl.training.state import TrainState


class CheckpointManager:
    """Saves an experiment at its intervals.

    Args:
        state: of the run.
        store: where to.
    """

    def __init__(self, state: TrainState, store: CheckpointStore) -> None:
        self._state, self._store = state, store
        self._last = time.monotonic()
        self.count, self.seconds = 0, 0.0
        """Checkpoints saved, and the time that it took."""

    def asks(self) -> bool:
        """Whether this rank, the first one, finds that it is time by its clock."""
        every = self._state.job.checkpoint.every_s
        return every is not None and self._state.comm.rank == 0 and time.monotonic() - self._last >= every

    def is_due(self, was_asked: bool) -> bool:
        """Whether a checkpoint follows the step just taken; equal on all ranks."""
        every = self._state.job.checkpoint.every_steps
        return was_asked or (every is not None and self._state.counters.step % every == 0)

    def save(self) -> None:
        """A collective. Raises EnvironmentFault where a rank cannot write."""
        begin = time.monotonic()
        self._store.save(self._state.counters.step, self._state.identity.fingerprint, *state_of(self._state))
        self._last = time.monotonic()
        self.seconds += self._last - begin
        self.count += 1


def resume(state: TrainState, store: CheckpointStore) -> tuple[Found | None, list[str]]:
    """Put the experiment where its newest whole checkpoint left it; a collective.

    Returns:
        The checkpoint, if there was one, and a line about each that was passed over.

    Raises:
        ConfigError: it belongs to another experiment.
        DataError: there are checkpoints, and none can be used.
    """

    def take_up(found: Found) -> None:
        # Another experiment's is not damaged; an older one would not be this one's, either.
        if not differences_from(state, found.fingerprint):
            load_state(state, found.step, found.shared, found.clients)

    found, problems = store.load([client.id for client in state.clients], take_up)
    if found is None and problems:
        raise DataError(
            f"{store.folder}: no checkpoint can be used: {'; '.join(problems)}; '--resume never' sets them aside and "
            "starts anew"
        )
    if found is None:
        return None, problems
    if other := differences_from(state, found.fingerprint):
        raise ConfigError(
            f"{store.folder}: the checkpoint at step {found.step} belongs to another experiment: {other}; give "
            "another --run-dir, or '--resume never' to start anew"
        )
    return found, problems


def differences_from(state: TrainState, other: Fingerprint) -> str:
    """The keys in which this experiment differs from another one; see `hpclbfl.runs.fingerprint.differences`."""
    other = checked_fingerprint(other)
    return differences(other, state.identity.fingerprint, state.job, state.global_batch_size, state.num_train)
