"""Runs within a Python program: errors are raised, and the engine is kept for the next run."""

from __future__ import annotations

import atexit
from pathlib import Path

from torch import nn

from hpclbfl.comm.base import Communicator
from hpclbfl.config.job import JobConfig
from hpclbfl.config.sections import CommConfig
from hpclbfl.core.errors import ConfigError, HpclbflError, RunFailed
from hpclbfl.training.loop import Outcome
from hpclbfl.training.resume import Resume
from hpclbfl.training.session import Session, join

_joined: list[Communicator] = []
"""The engine of this process's MPI job, once started: MPI cannot be initialised twice."""


def run_in_script(
    job: JobConfig, run_dir: Path | None = None, resume: Resume = "auto"
) -> tuple[Path, Outcome, nn.Module | None]:
    """Train a job; see `hpclbfl.training.session.run_job`.

    Returns:
        The run folder, complete on all ranks; what the run came to; and the trained net on the host, None where the
        run was done before or is to be resumed.

    Raises:
        HpclbflError: the run failed, which its folder says, too. In an MPI job of several ranks a failure ends all of
            them instead, as one that went on would leave the others waiting.
        KeyboardInterrupt: Ctrl-C; the run counts as failed.
    """
    comm = _engine(job.comm)
    session = Session(comm)
    try:
        outcome = session.run(job.resolved(comm.size), run_dir, resume)
        # Rank 0 writes the folder's last files.
        comm.barrier()
    except BaseException as error:
        if comm.size > 1:
            session.fail(error, debug=False)
        _, line = session.settle(error)
        if isinstance(error, Exception) and not isinstance(error, HpclbflError):
            raise RunFailed(line) from error
        raise
    return session.path, outcome, session.trained_net()


def _engine(config: CommConfig) -> Communicator:
    """The job's engine. One that has joined an MPI job is kept until the program ends.

    Raises:
        ConfigError: the program has joined its MPI job through another engine.
    """
    if _joined and config.engine in ("auto", _joined[0].engine):
        return _joined[0]
    if _joined:
        raise ConfigError(
            f"comm.engine: this program has joined its MPI job through {_joined[0].engine}, which cannot be changed to "
            f"{config.engine}; leave it 'auto'"
        )
    comm = join(config)
    if comm.engine != "local":
        _joined.append(comm)
        atexit.register(comm.close)
    return comm
