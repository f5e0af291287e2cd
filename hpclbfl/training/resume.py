"""What is in a run folder at the start: nothing, a run to resume, a finished run, or another experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from hpclbfl.core.errors import ConfigError, DataError
from hpclbfl.runs.checkpoint import CheckpointStore, Found
from hpclbfl.runs.fingerprint import held_experiment
from hpclbfl.runs.folder import Done, RunFolder, checkpoint_steps
from hpclbfl.training.saving import differences_from, resume
from hpclbfl.training.state import TrainState
from hpclbfl.training.stopping import is_finished

Resume = Literal["auto", "must", "never"]
"""auto: go on from the newest checkpoint, if there is one, and leave a run that is done; must: go on, or fail; never:
set aside what is there and start anew."""


def default_folder(state: TrainState) -> Path:
    """`runs/<slug>-<hash>`; where a run of an older version lies under its own hash, that."""
    identity, slug = state.identity, state.job.slug()
    path, former = (Path("runs") / f"{slug}-{digest}" for digest in (identity.digest, identity.former_digest))
    return former if former.exists() and not path.exists() else path


def find_done(folder: RunFolder, state: TrainState, mode: Resume) -> tuple[Done | None, str]:
    """Look into the folder, before it is touched; on one rank.

    Returns:
        DONE.json of a run that has all that the job asks for, else None; and what is wrong with it, else empty.

    Raises:
        ConfigError: the folder holds another experiment.
        DataError: it holds one, and it cannot be told which.
    """
    if mode == "never":
        return None, ""
    held = held_experiment(folder)
    if held is not None and (other := differences_from(state, held)):
        raise ConfigError(
            f"{folder.path}: holds another experiment: {other}; give another --run-dir, or '--resume never', which "
            "sets it aside"
        )
    try:
        done = folder.done()
    except DataError as error:
        if not checkpoint_steps(folder.checkpoints):
            raise DataError(
                f"{error}; there is no checkpoint from which the run could go on; '--resume never' sets it aside"
            ) from error
        return None, str(error)
    if done is not None and is_finished(done, state.job.stop):
        return done, ""
    if done is not None and not checkpoint_steps(folder.checkpoints):
        raise ConfigError(
            f"{folder.path}: is done at step {done.step} and kept no checkpoint from which it could go on; '--resume "
            "never' sets it aside and starts anew"
        )
    return None, ""


def restore_newest(state: TrainState, store: CheckpointStore, mode: Resume) -> tuple[Found | None, list[str]]:
    """Go on from the newest checkpoint, as the mode says; a collective. See `saving.resume`.

    Raises:
        ConfigError: there is none, and there must be.
        DataError: there are some, and none can be used.
    """
    if mode == "never":
        return None, []
    found, problems = resume(state, store)
    if found is None and mode == "must":
        raise ConfigError(f"--resume must: {store.folder} holds no checkpoint; without it the run starts anew")
    return found, problems
