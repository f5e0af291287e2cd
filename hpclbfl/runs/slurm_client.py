"""What Slurm says about jobs and about itself. Asks squeue and scontrol alone: sacct is off on many clusters."""

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
"""An overloaded controller answers late; later than this, it does not answer."""

JobId = Annotated[str, Field(pattern=r"^[0-9]{1,12}(_[0-9]{1,12})?$")]
"""Of a job, `12`, or of a task of an array, `12_3`: what becomes a word of one of Slurm's command lines."""

ENDED = frozenset(
    (
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
        *("REVOKED", "TIMEOUT"),
    )
)
"""States of jobs that will not run on; all others may."""
WAITING = frozenset(("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"))
"""States of jobs that will run, and do not yet."""

_JOBS_PER_CALL = 200
# Left by a job around us, or filters and formats of the user's own.
_LEFTOVERS = ("SLURM_", "SLURMD_", "SRUN_", "SQUEUE_", "SCANCEL_", "SUBMITIT_")
_ADDRESS = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")


class SlurmUnavailable(EnvironmentFault):
    """Slurm gives no answer, or none that can be read."""


class Job(NamedTuple):
    """A job in the queue; of an array, one task."""

    id: str
    """`12`, or of an array `12_3`."""
    state: str
    """Slurm's word: PENDING, RUNNING, COMPLETING ..."""
    reason: str
    """Why it waits: Priority, Resources ..."""


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the traces of a Slurm job around us; how Slurm is reached stays."""
    return {k: v for k, v in environ.items() if k in _ADDRESS or not k.startswith(_LEFTOVERS)}


def ask(command: list[str]) -> str:
    """Return what one of Slurm's commands prints.

    Raises:
        SlurmSilent: it is not there, fails or does not end within a minute; one line with its own words.
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
    """Return those of these jobs (`12`, `12_3`) that have not ended, array tasks one by one.

    Raises:
        SlurmSilent: squeue does not answer; then nothing is known, not that they have ended.
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
    # -r: one line for each task of an array; all states: a job that is being requeued is in none of the usual ones.
    command = ["squeue", "--noheader", "-r", "--states=all", "--format=%A|%F|%K|%T|%r", "--jobs=" + ",".join(ids)]
    try:
        text = ask(command)
    except SlurmUnavailable as error:
        # Said of a lone job that has ended and is forgotten; among several, squeue passes over such a one.
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
    """Return how many tasks an array may have (the largest index is one less).

    Raises:
        SlurmSilent: scontrol does not answer.
    """
    return int(_setting("MaxArraySize", r"\d+"))


def cluster_name() -> str:
    """Return the cluster's name. Raises SlurmUnavailable if scontrol does not answer."""
    return _setting("ClusterName", r"\S+")


def _setting(name: str, pattern: str) -> str:
    found = re.search(rf"^{name}\s*=\s*({pattern})\s*$", ask(["scontrol", "show", "config"]), re.MULTILINE)
    if found is None:
        raise SlurmUnavailable(f"scontrol show config: names no {name}")
    return found[1]


def is_here() -> bool:
    """Tell whether this machine can submit jobs to a Slurm, one that answers or is down just now."""
    if shutil.which("sbatch") is None:
        return False
    try:
        # Where it is installed and no cluster configured, even this fails.
        ask(["sbatch", "--version"])
    except SlurmUnavailable:
        return False
    return True


class Queue:
    """Slurm's answer about many jobs, asked for once; or that it gives none."""

    def __init__(self, jobs: Iterable[str]) -> None:
        self.silence: SlurmUnavailable | None = None
        self._live: dict[str, Job] = {}
        wanted = set(jobs)
        try:
            self._live = live_jobs(wanted) if wanted else {}
        except SlurmUnavailable as error:
            self.silence = error

    def __call__(self, ids: Iterable[str]) -> Mapping[str, Job]:
        """Live jobs among these. Raises SlurmUnavailable if there are any and Slurm gave no answer."""
        wanted = list(ids)
        if wanted and self.silence is not None:
            raise self.silence
        return {job: self._live[job] for job in wanted if job in self._live}
