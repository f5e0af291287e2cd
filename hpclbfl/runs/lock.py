"""Who owns a folder: one live process, or one Slurm job, at a time.

`<folder>/lease/<number>.json` names the owner; the file with the highest number counts. It is created with O_EXCL, so
that only one of two processes that find the folder free, or its lock stale, gets it. A new owner takes the next number
instead of replacing the file: no name is used twice, so nobody can remove a lock that changed after he read it. The
owner may start other processes that work for it (the ranks of a run): they find its token in their environment and
join.
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
from hpclbfl.core.files import create, explained_writes, make_folder
from hpclbfl.core.jsonfile import read_json, to_bytes, write_json
from hpclbfl.core.process import Process, this_process
from hpclbfl.runs.folder import RunFolder, numbers_in, utc_now
from hpclbfl.runs.slurm_client import ENDED, Job, JobId, Queue, SlurmUnavailable, cluster_name, live_jobs

TOKEN = "HPCLBFL_LEASE"
"""Environment variable: the token of the lease that this process works under."""

_ATTEMPTS = 20
_KEPT = 8
_WRITING_S = 30.0
"""A lock that cannot be read may be just being written; if it is older than this, it is stale."""


LOST = "ended without a word: killed, or its node was lost"
"""Error of a run whose status says that it trains although its lock is stale."""


class LeaseHeld(HpclbflError):
    """Another live process owns the folder."""


@dataclass(frozen=True)
class Owner:
    """The owner of a folder, present or past."""

    token: str
    time: str
    processes: tuple[Process, ...]
    """If any of these is alive, so is the owner."""
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


class Verdict(NamedTuple):
    """Whether an owner is alive, as far as can be known; in doubt it counts as alive."""

    live: bool
    why: str
    certain: bool = True


Query = Callable[[Iterable[str]], Mapping[str, Job]]
"""Live jobs among these ids, see `squeue.live_jobs`."""


class RunLock:
    """A folder that this process owns until it is released."""

    def __init__(self, path: Path, owner: Owner, joined: bool = False) -> None:
        self.path, self.owner, self.joined = path, owner, joined

    def environment(self) -> dict[str, str]:
        """Environment variables for processes that work for the owner."""
        return {TOKEN: self.owner.token}

    def release(self) -> None:
        """Release the folder; has no effect for processes that joined, or if the lock was lost."""
        if self.joined:
            return
        number, owner = _newest(self.path.parent)
        if owner is not None and owner.token == self.owner.token and self.path == _file(self.path.parent, number):
            _write(self.path, replace(owner, released=True))


def acquire(
    folder: Path, environ: Mapping[str, str] | None = None, query: Query = live_jobs, me: Owner | None = None
) -> RunLock:
    """Lock a run folder, creating it if necessary; take it over if its lock is stale.

    Args:
        folder: the run folder, or any other.
        environ: tells the Slurm job around us, and the lease to join; default: this process's.
        query: asks Slurm for jobs that live.
        me: the new owner; default: this process.

    Raises:
        LeaseHeld: another process owns it; one line that says which, and what to do if that one is gone after all.
        EnvironmentFault: the folder cannot be written.
    """
    environ = os.environ if environ is None else environ
    me = this_owner(environ, query) if me is None else me
    leases = folder / "lease"
    make_folder(leases)
    for _ in range(_ATTEMPTS):
        number, found = _newest(leases)
        path = _file(leases, number)
        if found is not None and not found.released:
            if found.token == environ.get(TOKEN):
                joined = replace(found, processes=(*found.processes, *me.processes))
                _write(path, joined)
                return RunLock(path, joined, joined=True)
            verdict = owner_liveness(found, query, me)
            if verdict.live:
                advice = "" if verdict.certain else f"; if it is gone, remove {path}"
                raise LeaseHeld(f"{folder}: owned by {found} since {found.time} ({verdict.why}){advice}")
        elif found is None and number and _is_fresh(path):
            raise LeaseHeld(f"{folder}: another process is just taking it")
        mine = _file(leases, number + 1)
        if _create(mine, me):
            if _newest(leases)[0] == number + 1:
                _remove_old(leases, number + 1)
                return RunLock(mine, me)
            # Since we looked, others have taken that number, released it, and gone on.
            mine.unlink(missing_ok=True)
    raise LeaseHeld(f"{folder}: others take it again and again; try later")


def holder(folder: Path) -> Owner | None:
    """Return who took the folder last and has not released it, alive or not."""
    _, owner = _newest(folder / "lease")
    return None if owner is None or owner.released else owner


def is_live(folder: Path, query: Query = live_jobs) -> bool:
    """Whether a live process owns the folder, so that a run whose status says that it trains really does."""
    owner = holder(folder)
    return owner is not None and owner_liveness(owner, query).live


def find_lost(folders: Iterable[Path]) -> set[Path]:
    """Run folders among these whose status says that they train although their locks are stale.

    An owner that cannot be looked at, say on another machine, counts as alive. Slurm is asked once for all.
    """
    owners: dict[Path, Owner | None] = {}
    for folder in folders:
        # A lock that cannot be looked at, or is just being written, says nothing.
        with suppress(EnvironmentFault):
            number, owner = _newest(folder / "lease")
            if owner is not None or not number or not _is_fresh(_file(folder / "lease", number)):
                owners[folder] = None if owner is None or owner.released else owner
    queue = Queue(owner.slurm for owner in owners.values() if owner is not None and owner.slurm is not None)
    lost = {folder for folder, owner in owners.items() if owner is None or not owner_liveness(owner, queue).live}
    # A run that has ended meanwhile wrote its status before it released the lock.
    states = {folder: RunFolder(folder).status() for folder in lost}
    return {folder for folder, status in states.items() if status is not None and status.state == "running"}


def owner_liveness(owner: Owner, query: Query = live_jobs, me: Owner | None = None) -> Verdict:
    """Whether an owner is alive, as far as this machine can see.

    Args:
        owner: who is asked about.
        query: asks Slurm.
        me: this process: after a requeue, the same Slurm job knows that its former start is gone.
    """
    alive = next((p for p in owner.processes if p.is_running), None)
    if alive is not None:
        return Verdict(True, f"process {alive.pid} is running")
    elsewhere = [p for p in owner.processes if not p.is_here]
    if owner.slurm is None:
        if not elsewhere:
            return Verdict(False, "its process is gone")
        return Verdict(True, f"whether it still runs can only be seen on {elsewhere[0].host}", False)
    if me is not None and (me.slurm, me.cluster) == (owner.slurm, owner.cluster):
        if me.restart > owner.restart or not elsewhere:
            return Verdict(False, "it is this job's own, from before")
        return Verdict(True, "it is of the same job", False)
    return _judge_job(owner, query)


def _judge_job(owner: Owner, query: Query) -> Verdict:
    job = owner.slurm or ""
    try:
        if owner.cluster is not None and (here := cluster_name()) != owner.cluster:
            return Verdict(True, f"job {job} is one of cluster {owner.cluster}, this is {here}", False)
        found = query([job]).get(job)
    except SlurmUnavailable as error:
        return Verdict(True, f"whether job {job} lives is unknown: {error}", False)
    if found is None or found.state in ENDED:
        return Verdict(False, f"job {job} has ended")
    return Verdict(True, f"job {job} is {found.state}")


def this_owner(environ: Mapping[str, str], query: Query = live_jobs) -> Owner:
    """Return this process as an owner, with the Slurm job that it runs in."""
    me = Owner(uuid.uuid4().hex, utc_now(), (this_process(),))
    job = slurm_job(environ)
    if job is None:
        return me
    with suppress(SlurmUnavailable):
        if job not in query([job]):
            # Variables that outlived their job, in a shell that was started in it.
            return me
    restart = environ.get("SLURM_RESTART_COUNT", "0")
    return replace(
        me,
        slurm=job,
        restart=int(restart) if restart.isdigit() else 0,
        cluster=environ.get("SLURM_CLUSTER_NAME"),
    )


def slurm_job(environ: Mapping[str, str]) -> str | None:
    """Return the job that these variables name, `12` or `12_3`."""
    array, task = environ.get("SLURM_ARRAY_JOB_ID", ""), environ.get("SLURM_ARRAY_TASK_ID", "")
    if array.isdigit() and task.isdigit():
        return f"{array}_{task}"
    job = environ.get("SLURM_JOB_ID", "")
    return job if job.isdigit() else None


def _file(leases: Path, number: int) -> Path:
    return leases / f"{number:06d}.json"


def _newest(leases: Path) -> tuple[int, Owner | None]:
    """The highest number, 0 if there is none, and its owner, None if it cannot be read."""
    while True:
        number = max(numbers_in(leases, 6, suffix=".json"), default=0)
        try:
            owner = read_json(_file(leases, number), Owner)
        except DataError:
            return number, None
        if owner is not None or number == 0:
            return number, owner
        time.sleep(0.001)  # taken and released between the two calls


def _is_fresh(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < _WRITING_S
    except OSError:
        return False


def _create(path: Path, owner: Owner) -> bool:
    """Create the file; False if another process has."""
    with explained_writes(path):
        try:
            file = create(path)
        except FileExistsError:
            return False
        try:
            with file:
                file.write(to_bytes(asdict(owner)))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise
    return True


def _write(path: Path, owner: Owner) -> None:
    write_json(path, asdict(owner))


def _remove_old(leases: Path, number: int) -> None:
    # Some are kept for processes that looked earlier, on file systems that show new files late.
    for old in numbers_in(leases, 6, suffix=".json"):
        if old < number - _KEPT:
            with suppress(OSError):
                _file(leases, old).unlink()
