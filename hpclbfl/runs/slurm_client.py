"""Queries to Slurm. Only squeue and scontrol are used, because sacct is disabled on many clusters."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from typing import Annotated, NamedTuple

from pydantic import Field

from hpclbfl.core.errors import EnvironmentFault

TIMEOUT_S = 60.0
"""Time limit of a command; an overloaded controller answers late."""

JobId = Annotated[str, Field(pattern=r"^[0-9]{1,12}(_[0-9]{1,12})?$")]
"""A job, `12`, or a task of an array, `12_3`; checked because it becomes an argument of Slurm's commands."""

ENDED = frozenset(
    (
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
        *("REVOKED", "TIMEOUT"),
    )
)
"""States of jobs that have ended for good."""
WAITING = frozenset(["PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"])
"""States of jobs that have not started yet."""

_JOBS_PER_CALL = 200
# Left by the job that this process runs in, or the user's own filters and formats.
_LEFTOVERS = ("SLURM_", "SLURMD_", "SRUN_", "SQUEUE_", "SCANCEL_", "SUBMITIT_")
_ADDRESS = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")


class SlurmUnavailable(EnvironmentFault):
    """Slurm does not answer, or its answer cannot be read."""


class Job(NamedTuple):
    """A job in the queue; of an array, one task."""

    id: str
    """`12`, or of an array `12_3`."""
    state: str
    """As Slurm names it: PENDING, RUNNING, COMPLETING ..."""
    reason: str
    """Why it is waiting: Priority, Resources ..."""


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without the variables of a surrounding Slurm job, except those that locate Slurm."""
    return {k: v for k, v in environ.items() if k in _ADDRESS or not k.startswith(_LEFTOVERS)}


def ask(command: list[str]) -> str:
    """The output of one of Slurm's commands.

    Raises:
        SlurmUnavailable: it is missing, fails or takes more than a minute; one line that quotes its last message.
    """
    name = command[0]
    try:
        done = subprocess.run(
            command,
            env=clean_environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
        )
    except FileNotFoundError as error:
        raise SlurmUnavailable(f"{name}: no such command on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmUnavailable(f"{name}: no answer within {TIMEOUT_S:.0f} s") from error
    except OSError as error:
        raise SlurmUnavailable(f"{name}: cannot be started: {error.strerror}") from error
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise SlurmUnavailable(f"{name} failed: {lines[-1] if lines else f'exit code {done.returncode}, no message'}")
    return done.stdout


def live_jobs(ids: Iterable[str]) -> dict[str, Job]:
    """Those of these jobs (`12`, `12_3`) that have not ended, by id.

    Raises:
        SlurmUnavailable: squeue does not answer, which does not mean that they have ended.
    """
    wanted = set(ids)
    arrays = sorted({job.split("_")[0] for job in wanted}, key=int)
    found: dict[str, Job] = {}
    for begin in range(0, len(arrays), _JOBS_PER_CALL):
        for job in _squeue(arrays[begin : begin + _JOBS_PER_CALL]):
            if job.id in wanted and job.state not in ENDED:
                found[job.id] = job
    return found


def _squeue(ids: list[str]) -> list[Job]:
    # -r: one line for each task of an array; all states: by default a job that is being requeued is left out.
    command = ["squeue", "--noheader", "-r", "--states=all", "--format=%A|%F|%K|%T|%r", "--jobs=" + ",".join(ids)]
    try:
        text = ask(command)
    except SlurmUnavailable as error:
        # squeue fails so for a single job that has ended and is forgotten; among several it skips such jobs.
        if "Invalid job id" in str(error):
            return []
        raise
    jobs = []
    for line in text.splitlines():
        fields = line.strip().split("|")
        if len(fields) != 5 or not fields[0].isdigit():
            raise SlurmUnavailable(f"squeue: a line that cannot be read: {line.strip()[:80]!r}")
        number, array, task, state, reason = fields
        jobs.append(Job(f"{array}_{task}" if task.isdigit() else number, state, reason))
    return jobs


def max_array_size() -> int:
    """Largest number of tasks of an array (the largest index is one less). Raises SlurmUnavailable."""
    return int(_setting("MaxArraySize", r"\d+"))


def cluster_name() -> str:
    """The cluster's name. Raises SlurmUnavailable."""
    return _setting("ClusterName", r"\S+")


def _setting(name: str, pattern: str) -> str:
    found = re.search(rf"^{name}\s*=\s*({pattern})\s*$", ask(["scontrol", "show", "config"]), re.MULTILINE)
    if found is None:
        raise SlurmUnavailable(f"scontrol show config: names no {name}")
    return found[1]


def is_here() -> bool:
    """Whether Slurm is installed and configured on this machine, even if its controller is down at the moment."""
    if shutil.which("sbatch") is None:
        return False
    try:
        # Even this fails where Slurm is installed without a configured cluster.
        ask(["sbatch", "--version"])
    except SlurmUnavailable:
        return False
    return True


class Queue:
    """A snapshot of Slurm's answer about many jobs, from one query; or its failure."""

    def __init__(self, jobs: Iterable[str]) -> None:
        self.fault: SlurmUnavailable | None = None
        self._live: dict[str, Job] = {}
        wanted = set(jobs)
        try:
            self._live = live_jobs(wanted) if wanted else {}
        except SlurmUnavailable as error:
            self.fault = error

    def __call__(self, ids: Iterable[str]) -> Mapping[str, Job]:
        """The live jobs among these. Raises SlurmUnavailable if any are asked for and the query failed."""
        wanted = list(ids)
        if wanted and self.fault is not None:
            raise self.fault
        return {job: self._live[job] for job in wanted if job in self._live}
