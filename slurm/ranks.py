"""Starting the ranks of a run: by srun or mpirun in an allocation, by mpirun on this machine, or as one process."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from hpclbfl.comm.mpi_runtime import bundled_environment
from hpclbfl.core.errors import REQUEUE_CODE
from hpclbfl.core.signals import ASKING, handling
from hpclbfl.launch.children import end_session, module_command, tethered
from hpclbfl.launch.mpirun import (
    available_cores,
    environment_without_job,
    local_mpirun_command,
    rank_environment,
)
from hpclbfl.launch.parent import GRACE_S
from hpclbfl.runs.slurm_client import clean_environment
from hpclbfl.slurm.expand import Run
from hpclbfl.slurm.folder import SweepFolder
from hpclbfl.slurm.resources import ProfileConfig

Launcher = Literal["srun", "mpirun", "local"]


@dataclass(frozen=True)
class Launch:
    """How to start a run; sent to the node as it is."""

    job_file: Path
    run_dir: Path
    ranks: int
    launcher: Launcher
    cpus_per_rank: int | None = None
    args: tuple[str, ...] = ()
    """Of the launcher."""


def plan_launch(run: Run, folder: SweepFolder, profile: ProfileConfig) -> Launch:
    """How a run of a sweep is started under a profile."""
    return Launch(
        job_file=folder.job_file(run.id),
        run_dir=folder.run(run.id).path,
        ranks=run.ranks,
        launcher="local" if profile.kind == "local" else profile.launcher,
        cpus_per_rank=profile.cpus_per_rank,
        args=profile.launcher_args,
    )


def launch_command(
    launch: Launch, environ: Mapping[str, str], cores: int | None = None
) -> tuple[list[str], dict[str, str]]:
    """Return the command line that starts the ranks, and its environment.

    Args:
        launch: the run.
        environ: the environment to start from; a local launch drops the variables of an enclosing job.
        cores: of this machine that the run may use; default: all that this process may.

    Raises:
        EnvironmentFault: there is no mpirun.
    """
    train = module_command("hpclbfl", "train", str(launch.job_file), "--run-dir", str(launch.run_dir))
    cores = available_cores() if cores is None else cores
    threads = launch.cpus_per_rank or 1
    if launch.launcher == "srun":
        env = {**environ, **rank_environment(environ, threads), **bundled_environment(environ)}
        # A rank that fails ends all; and a step does not inherit the allocation's cores per task.
        argv = ["srun", "--kill-on-bad-exit=1", f"--ntasks={launch.ranks}", f"--cpus-per-task={threads}"]
        return [*argv, *launch.args, *train], env
    if launch.launcher == "local":
        environ = clean_environment(environment_without_job(environ))
        if launch.ranks == 1:
            return train, {**environ, **rank_environment(environ, cores), **bundled_environment(environ)}
    elif "OMP_NUM_THREADS" not in environ:
        environ = {**environ, "OMP_NUM_THREADS": str(threads)}
    argv, env = local_mpirun_command(launch.ranks, train, environ, cores)
    return [argv[0], *launch.args, *argv[1:]], env


class Stop:
    """Context manager that passes requests to stop on to the ranks, which then save their state and end.

    USR2 (from Slurm some time before the time limit), TERM (at the limit, or upon preemption), INT and the like all
    become USR2: srun and mpirun forward it to the ranks, whereas the others make them kill the ranks.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._handling = ExitStack()

    def __enter__(self) -> Stop:
        self._handling.enter_context(handling((signal.SIGINT, *ASKING), self._receive))
        # scancel sends SIGCONT, too, which means nothing to a process that is not suspended.
        self._handling.enter_context(handling((signal.SIGCONT,), signal.SIG_IGN))
        return self

    def __exit__(self, *error: object) -> None:
        self._handling.close()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        self._forward()

    def _forward(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGUSR2)

    def run(self, argv: Sequence[str], env: Mapping[str, str]) -> int:
        """Run a command to its end and return its exit code, 128+n if signal n ended it."""
        if self.received:
            return REQUEUE_CODE
        # In a session of its own, so that signals to the group of this process reach it only through us.
        self._process = subprocess.Popen(
            tethered(argv), env=dict(env), stdin=subprocess.DEVNULL, start_new_session=True, restore_signals=True
        )
        if self.received:
            # A signal that came while the command was being started found no process to forward it to.
            self._forward()
        code = self._process.wait()
        if code < 0:
            end_session(self._process.pid, GRACE_S)
        return 128 - code if code < 0 else code
