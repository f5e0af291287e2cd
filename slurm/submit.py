"""Submitting runs to Slurm through submitit: job arrays and their batch scripts."""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any

from hpclbfl.core.errors import ConfigError, EnvironmentFault, RunFailed
from hpclbfl.core.text import printable
from hpclbfl.launch.children import RUN_MODULE
from hpclbfl.launch.mpirun import environment_without_job
from hpclbfl.runs.lock import TOKEN
from hpclbfl.runs.slurm_client import clean_environment
from hpclbfl.slurm.expand import Run
from hpclbfl.slurm.folder import SweepFolder
from hpclbfl.slurm.ranks import plan_launch
from hpclbfl.slurm.resources import ProfileConfig
from hpclbfl.slurm.sbatch import cut, sbatch_parameters, shares
from hpclbfl.slurm.worker import Task, run_task

# Environment variables that override the batch script. These three are kept unless the profile or the sweep sets them.
_KEPT_VARIABLES = {"SBATCH_ACCOUNT": "account", "SBATCH_PARTITION": "partition", "SBATCH_QOS": "qos"}


@dataclass(frozen=True)
class Array:
    """Runs that one call of sbatch submits; a single run is a plain job."""

    runs: tuple[Run, ...]
    parameters: Mapping[str, Any]
    """submitit's."""
    after: int | None = None
    """Index of the array that must end before this one starts."""


def arrays(name: str, runs: Sequence[Run], profile: ProfileConfig, max_array_size: int) -> list[Array]:
    """Group runs into arrays of one number of ranks each, within the cluster's limit, sharing `max_parallel`.

    Args:
        name: of the jobs.
        runs: in the order of submission.
        profile: the cluster.
        max_array_size: most tasks of an array.

    Raises:
        ConfigError: nodes and ranks do not fit.
    """
    parts: list[tuple[Run, ...]] = []
    for ranks in dict.fromkeys(run.ranks for run in runs):
        alike = [run for run in runs if run.ranks == ranks]
        for size in cut(len(alike), max_array_size):
            parts.append(tuple(alike[:size]))
            alike = alike[size:]
    found = []
    for index, (part, share) in enumerate(
        zip(parts, shares(profile.max_parallel, [len(p) for p in parts]), strict=True)
    ):
        after = index - profile.max_parallel if profile.max_parallel and index >= profile.max_parallel else None
        found.append(Array(part, sbatch_parameters(name, part[0].ranks, profile, share), after))
    return found


def sbatch_text(array: Array, folder: SweepFolder, dependency: str | None = None) -> str:
    """Return the batch script of an array as it would be submitted.

    Raises:
        ConfigError: the name of the sweep's folder holds a Slurm pattern or a control character.
    """
    executor = _executor(array, folder, dependency)
    if len(array.runs) > 1:
        executor.parameters["map_count"] = len(array.runs)
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def submit(
    planned: Sequence[Array], folder: SweepFolder, profile_name: str, profile: ProfileConfig, say: Callable[[str], None]
) -> None:
    """Submit arrays, and record the jobs of each before the next is submitted.

    Ctrl-C waits until the jobs of the current array are recorded.

    Raises:
        RunFailed: sbatch refused an array; the message names those submitted before it.
    """
    ids: list[str] = []
    for index, array in enumerate(planned):
        dependency = f"afterany:{ids[array.after]}" if array.after is not None else None
        tasks = [Task(plan_launch(run, folder, profile), profile.retries, folder.slurm) for run in array.runs]
        with _uninterrupted():
            try:
                jobs = _sbatch(array, folder, dependency, tasks, profile)
            except _Refused as refused:
                before = f"submitted before it: {', '.join(ids)}" if ids else "nothing was submitted"
                which = f"array {index + 1} of {len(planned)} ({len(array.runs)} run{_s(len(array.runs))})"
                raise RunFailed(
                    f"sbatch refused {which}: {refused}; {before}; the same command submits the rest"
                ) from refused
            folder.record(profile_name, dict(zip(jobs, (run.id for run in array.runs), strict=True)))
        ids.append(jobs[0].split("_")[0])
        ranks = array.runs[0].ranks
        say(f"submitted job {ids[-1]}: {len(jobs)} run{_s(len(jobs))}, {ranks} rank{_s(ranks)} each")


def _s(number: int) -> str:
    return "" if number == 1 else "s"


class _Refused(Exception):
    """sbatch failed; its error message."""


def _sbatch(
    array: Array, folder: SweepFolder, dependency: str | None, tasks: list[Task], profile: ProfileConfig
) -> list[str]:
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        with _environment(_submission_environment(profile)), redirect_stderr(io.StringIO()):
            return [str(job.job_id) for job in _executor(array, folder, dependency).map_array(run_task, tasks)]
    except (FailedJobError, FailedSubmissionError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise _Refused(lines[-1].removeprefix("sbatch: error: ") if lines else "it gives no reason") from error
    except OSError as error:
        raise EnvironmentFault(f"{folder.slurm}: cannot be written: {error.strerror or error}") from error


def _executor(array: Array, folder: SweepFolder, dependency: str | None) -> Any:
    import submitit

    class Executor(submitit.SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            # So that the batch script can be shown without a Slurm, too.
            return 2

    _check_path(folder)
    # RUN_MODULE keeps the working folder off the path; submitit adds `-u -m` and its module.
    python = shlex.join([sys.executable, "-u", str(RUN_MODULE)])
    executor = Executor(folder=folder.slurm, python=f"exec {python}")
    executor.update_parameters(**array.parameters, **({"dependency": dependency} if dependency else {}))
    return executor


def _check_path(folder: SweepFolder) -> None:
    """Refuse a folder whose name a batch script cannot hold: with a pattern, an escape or a control character."""
    where = f"--dir {printable(folder.path)}"
    text = str(folder.slurm)
    if "%" in text or "\\" in text:
        sign = "%" if "%" in text else "\\"
        raise ConfigError(f"{where}: Slurm would read the {sign} in it as a pattern; give a folder without one")
    if not text.isprintable():
        raise ConfigError(f"{where}: a batch script cannot name it; give a folder without control characters")


def _submission_environment(profile: ProfileConfig) -> dict[str, str]:
    """The environment for sbatch, which jobs inherit: without variables of an enclosing job."""
    stated = {**profile.sbatch, "account": profile.account, "partition": profile.partition}
    kept = {name for name, key in _KEPT_VARIABLES.items() if stated.get(key) is None}
    environ = clean_environment(environment_without_job(os.environ))
    return {k: v for k, v in environ.items() if k in kept or (k != TOKEN and not k.startswith("SBATCH_"))}


@contextmanager
def _environment(environ: Mapping[str, str]) -> Iterator[None]:
    """Replace this process's environment temporarily: submitit passes on no other."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Block SIGINT, SIGTERM and SIGHUP, also for commands that are started within the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
