"""The lock of a folder: one live process, or one Slurm job, owns it at a time.

`<folder>/lease/<number>.json` names the owner; the file with the highest number counts. A new owner creates the next
number with O_EXCL, so only one of several processes that find the folder free, or its lock stale, succeeds. No number
is reused, so no process can remove a lock that has changed since it read it. Processes that the owner starts (the ranks
of a run) find its token in their environment and join.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field

from hpclbfl.core.errors import DataError, EnvironmentFault, HpclbflError
from hpclbfl.core.files import explained_writes, make_folder, write_new
from hpclbfl.core.jsonfile import read_json, to_bytes, write_json
from hpclbfl.core.process import Process, this_process
from hpclbfl.runs.folder import RunFolder, numbers_in, utc_now
from hpclbfl.runs.slurm_client import ENDED, Job, JobId, Queue, SlurmUnavailable, cluster_name, live_jobs

TOKEN = "HPCLBFL_LEASE"
"""Environment variable: the token of the lock that this process works under."""
LOST = "ended without a word: killed, or its node was lost"
"""Error of a run whose status is `running` although its lock is stale."""

_ATTEMPTS = 20
_KEPT = 8
"""Old locks that stay for processes that listed the folder earlier; some file systems show new files late."""
_WRITING_S = 30.0
"""An unreadable lock younger than this may be half written; an older one is stale."""


class LockHeld(HpclbflError):
    """Another live process owns the folder."""


@dataclass(frozen=True)
class Owner:
    """The present or former owner of a folder."""

    token: str
    time: str
    processes: tuple[Process, ...]
    """The owner is alive while any of these is."""
    slurm: JobId | None = None
    """The job, `12` or `12_3`."""
    restart: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """How often Slurm has requeued the job so far."""
    cluster: str | None = None
    released: bool = False

    def __str__(self) -> str:
        first = self.processes[0] if self.processes else None
        at = f" on {first.host}" if first else ""
        return f"Slurm job {self.slurm}{at}" if self.slurm else f"process {first.pid if first else '?'}{at}"


class Liveness(NamedTuple):
    """Whether an owner is alive; if that is unknown, it counts as alive and `certain` is false."""

    live: bool
    why: str
    certain: bool = True


Query = Callable[[Iterable[str]], Mapping[str, Job]]
"""The live jobs among these ids; see `slurm_client.live_jobs`."""


class RunLock:
    """A folder that this process owns until it calls `release`."""

    def __init__(self, path: Path, owner: Owner, joined: bool = False) -> None:
        self.path, self.owner, self.joined = path, owner, joined

    def environment(self) -> dict[str, str]:
        """Environment variables for processes that are to join."""
        return {TOKEN: self.owner.token}

    def release(self) -> None:
        """Release the folder; does nothing in a process that joined, or if the lock was lost."""
        path, owner = _newest(self.path.parent)
        if not self.joined and path == self.path and owner is not None and owner.token == self.owner.token:
            write_json(path, asdict(replace(owner, released=True)))


def acquire(
    folder: Path, environ: Mapping[str, str] | None = None, query: Query = live_jobs, me: Owner | None = None
) -> RunLock:
    """Lock a folder, creating it if necessary; a stale lock is taken over.

    Args:
        folder: a run folder, or any other.
        environ: names the Slurm job of this process and the lock to join; default: this process's environment.
        query: asks Slurm which jobs are live.
        me: the new owner; default: this process.

    Raises:
        LockHeld: another process owns it; one line that names it, and says what to do if it is gone after all.
        EnvironmentFault: the folder cannot be written.
    """
    environ = os.environ if environ is None else environ
    me = this_owner(environ, query) if me is None else me
    locks = folder / "lease"
    make_folder(locks)
    for _ in range(_ATTEMPTS):
        path, owner = _newest(locks)
        if owner is not None and not owner.released:
            if owner.token == environ.get(TOKEN):
                joined = replace(owner, processes=(*owner.processes, *me.processes))
                write_json(path, asdict(joined))
                return RunLock(path, joined, joined=True)
            liveness = owner_liveness(owner, query, me)
            if liveness.live:
                advice = "" if liveness.certain else f"; if it is gone, remove {path}"
                raise LockHeld(f"{folder}: owned by {owner} since {owner.time} ({liveness.why}){advice}")
        elif owner is None and _is_fresh(path):
            raise LockHeld(f"{folder}: another process is acquiring the lock right now")
        mine = path.with_name(f"{int(path.stem) + 1:06d}.json")
        if _create(mine, me):
            if _newest(locks)[0] == mine:
                _remove_old(mine)
                return RunLock(mine, me)
            # The listing was out of date: others had used and removed this number, and have gone on.
            mine.unlink(missing_ok=True)
    raise LockHeld(f"{folder}: other processes keep acquiring the lock; try again later")


def holder(folder: Path) -> Owner | None:
    """The last owner of a folder if it has not released it, alive or not."""
    _, owner = _newest(folder / "lease")
    return None if owner is None or owner.released else owner


def is_live(folder: Path, query: Query = live_jobs) -> bool:
    """Whether a live process owns the folder, so that a run with the status `running` really is running."""
    owner = holder(folder)
    return owner is not None and owner_liveness(owner, query).live


def find_lost(folders: Iterable[Path]) -> set[Path]:
    """Those run folders whose status is `running` although their lock is stale.

    An owner that cannot be checked, such as one on another machine, counts as alive. Slurm is asked once for all.
    """
    owners: dict[Path, Owner | None] = {}
    for folder in folders:
        # An unreadable or half-written lock tells nothing.
        with suppress(EnvironmentFault):
            path, owner = _newest(folder / "lease")
            if owner is not None or not _is_fresh(path):
                owners[folder] = None if owner is None or owner.released else owner
    queue = Queue(owner.slurm for owner in owners.values() if owner is not None and owner.slurm is not None)
    lost = {folder for folder, owner in owners.items() if owner is None or not owner_liveness(owner, queue).live}
    # Read after the locks: a run that ends writes its status before it releases its lock.
    states = {folder: RunFolder(folder).status() for folder in lost}
    return {folder for folder, status in states.items() if status is not None and status.state == "running"}


def owner_liveness(owner: Owner, query: Query = live_jobs, me: Owner | None = None) -> Liveness:
    """Whether an owner is alive, as far as this machine can tell.

    Args:
        owner: the owner in question.
        query: asks Slurm which jobs are live.
        me: this process; after a requeue it is the same Slurm job, whose former processes are gone.
    """
    alive = next((p for p in owner.processes if p.is_running), None)
    if alive is not None:
        return Liveness(True, f"process {alive.pid} is running")
    remote = next((p.host for p in owner.processes if not p.is_here), None)
    if owner.slurm is None:
        if remote is None:
            return Liveness(False, "its process is gone")
        return Liveness(True, f"whether it still runs can only be seen on {remote}", False)
    if me is not None and (me.slurm, me.cluster) == (owner.slurm, owner.cluster):
        if me.restart > owner.restart or remote is None:
            return Liveness(False, "an earlier start of this job")
        return Liveness(True, "it belongs to the same job", False)
    try:
        if owner.cluster is not None and (here := cluster_name()) != owner.cluster:
            return Liveness(True, f"job {owner.slurm} belongs to cluster {owner.cluster}, this is {here}", False)
        job = query([owner.slurm]).get(owner.slurm)
    except SlurmUnavailable as error:
        return Liveness(True, f"whether job {owner.slurm} lives is unknown: {error}", False)
    if job is None or job.state in ENDED:
        return Liveness(False, f"job {owner.slurm} has ended")
    return Liveness(True, f"job {owner.slurm} is {job.state}")


def this_owner(environ: Mapping[str, str], query: Query = live_jobs) -> Owner:
    """The calling process as an owner, with the Slurm job that it runs in."""
    me = Owner(uuid.uuid4().hex, utc_now(), (this_process(),))
    job = slurm_job(environ)
    if job is None:
        return me
    with suppress(SlurmUnavailable):
        if job not in query([job]):
            # A shell that was started in a job keeps the job's variables after its end.
            return me
    restart = environ.get("SLURM_RESTART_COUNT", "0")
    count = int(restart) if restart.isdigit() else 0
    return replace(me, slurm=job, restart=count, cluster=environ.get("SLURM_CLUSTER_NAME"))


def slurm_job(environ: Mapping[str, str]) -> str | None:
    """The job that these variables name, `12` or `12_3`."""
    array, task = environ.get("SLURM_ARRAY_JOB_ID", ""), environ.get("SLURM_ARRAY_TASK_ID", "")
    if array.isdigit() and task.isdigit():
        return f"{array}_{task}"
    job = environ.get("SLURM_JOB_ID", "")
    return job if job.isdigit() else None


def _newest(locks: Path) -> tuple[Path, Owner | None]:
    """The file with the highest number (000000.json, which never exists, if there is none), and the owner it names.

    The owner is None if the file cannot be read.
    """
    while True:
        number = max(numbers_in(locks, 6, suffix=".json"), default=0)
        path = locks / f"{number:06d}.json"
        try:
            owner = read_json(path, Owner)
        except DataError:
            return path, None
        if owner is not None or number == 0:
            return path, owner
        time.sleep(0.001)  # removed between the two calls


def _is_fresh(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < _WRITING_S
    except OSError:
        return False


def _create(path: Path, owner: Owner) -> bool:
    """Create a lock file; False if another process has."""
    with explained_writes(path):
        try:
            write_new(path, to_bytes(asdict(owner)))
        except FileExistsError:
            return False
    return True


def _remove_old(newest: Path) -> None:
    for number in numbers_in(newest.parent, 6, suffix=".json"):
        if number < int(newest.stem) - _KEPT:
            with suppress(OSError):
                newest.with_name(f"{number:06d}.json").unlink()
