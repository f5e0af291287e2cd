"""The lock of a folder: one owner at a time, also with races, deaths and requeued jobs."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hpclbfl.core.errors import EnvironmentFault
from hpclbfl.core.process import Process, process_of, this_process
from hpclbfl.runs import lock as lock_module
from hpclbfl.runs.folder import RunFolder
from hpclbfl.runs.lock import LockHeld, Owner, RunLock, acquire, holder, is_live, owner_liveness, this_owner
from hpclbfl.runs.slurm_client import Job, SlurmUnavailable
from tests.slurm.conftest import FakeSlurm

GONE = Process(socket.gethostname(), 2**22 - 1, "never/0")
ELSEWHERE = Process("another-host", 1, "x")


def queue(*jobs: str, state: str = "RUNNING"):  # type: ignore[no-untyped-def]
    return lambda ids: {job: Job(job, state, "None") for job in ids if job in jobs}


def unavailable(ids: Any) -> Any:
    raise SlurmUnavailable("squeue: no answer within 60 s")


def owner(*processes: Process, **fields: Any) -> Owner:
    return Owner(fields.pop("token", "t"), "2026-01-01T00:00:00+00:00", processes, **fields)


def test_lost_runs_are_found(tmp_path: Path) -> None:
    cases = {"mine": None, "gone": owner(GONE), "elsewhere": owner(ELSEWHERE), "nobody": None, "job": owner(slurm="12")}
    for name, who in cases.items():
        (tmp_path / name).mkdir()
        if who is not None:
            acquire(tmp_path / name, {}, me=who)
    acquire(tmp_path / "mine", {})
    for name in cases:
        RunFolder(tmp_path / name).write_status("running")
    # Ended after its lock was read.
    (tmp_path / "ended").mkdir()
    RunFolder(tmp_path / "ended").write_status("done")
    lost = lock_module.find_lost(tmp_path / name for name in [*cases, "ended"])
    # Without Slurm the state of a job is unknown.
    assert lost == {tmp_path / "gone", tmp_path / "nobody"}


def test_one_at_a_time(tmp_path: Path) -> None:
    first = acquire(tmp_path, {})
    assert is_live(tmp_path)
    with pytest.raises(LockHeld) as held:
        acquire(tmp_path, {})
    assert f"owned by process {os.getpid()} on {socket.gethostname()} since" in str(held.value)
    first.release()
    assert holder(tmp_path) is None and not is_live(tmp_path)
    acquire(tmp_path, {}).release()
    first.release()


@pytest.mark.parametrize(
    "fields",
    [
        {"slurm": -1},
        {"slurm": "12; rm"},
        {"restart": "x"},
        {"processes": [["here", -1, "x"]]},
        {"processes": [["here", 0, "x"]]},
        {"processes": [["here", 2**40, "x"]]},
        {"processes": ["here"]},
        {"token": None},
        {"released": "no"},
    ],
)
def test_an_invalid_lock_counts_as_left_by_a_crash(tmp_path: Path, fields: dict[str, Any]) -> None:
    values = {"token": "t", "time": "", "processes": [["here", 1, "x"]], **fields}
    (tmp_path / "lease").mkdir()
    path = tmp_path / "lease" / "000001.json"
    path.write_text(json.dumps(values))
    with pytest.raises(LockHeld, match="another process is acquiring the lock right now"):
        acquire(tmp_path, {})
    os.utime(path, (0, 0))
    assert holder(tmp_path) is None
    assert acquire(tmp_path, {}).path.name == "000002.json"


def test_a_link_in_place_of_the_lock_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "lease").symlink_to("precious")
    with pytest.raises(EnvironmentFault, match="lease: is a link"):
        acquire(tmp_path, {})
    assert list((tmp_path / "precious").iterdir()) == []


def test_old_locks_go_and_other_names_stay(tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    others = ["1.json", "0000001.json", "000001.txt", "00000\u0661.json"]
    for name in others:
        (tmp_path / "lease" / name).write_text("{}")
    for _ in range(12):
        acquire(tmp_path, {}).release()
    names = sorted(path.name for path in (tmp_path / "lease").iterdir())
    assert names == sorted([*others, *(f"{number:06d}.json" for number in range(4, 13))])


def test_ranks_join_the_lock_of_their_owner(tmp_path: Path) -> None:
    mine = acquire(tmp_path, {})
    joined = acquire(tmp_path, mine.environment())
    assert joined.joined
    joined.release()
    found = holder(tmp_path)
    assert found is not None and len(found.processes) == 2
    with pytest.raises(LockHeld):
        acquire(tmp_path, {lock_module.TOKEN: "another's"})
    mine.release()
    # A process whose owner has released the lock needs a lock of its own.
    assert not acquire(tmp_path, mine.environment()).joined


def test_an_owner_lives_while_one_of_its_processes_does(tmp_path: Path) -> None:
    assert not owner_liveness(owner(GONE)).live
    assert owner_liveness(owner(GONE, this_process())).live
    # A reused pid is another process.
    assert not owner_liveness(owner(this_process()._replace(start="never/0"))).live
    verdict = owner_liveness(owner(ELSEWHERE))
    assert verdict.live and not verdict.certain and "another-host" in verdict.why


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    process = process_of(child.pid)
    end = time.monotonic() + 20
    while process.is_running and time.monotonic() < end:
        time.sleep(0.01)
    assert not process.is_running
    child.wait()


def test_slurm_owners() -> None:
    mine = owner(GONE, slurm="12_3")
    assert owner_liveness(mine, queue("12_3")).live
    assert owner_liveness(mine, queue("12_3", state="PENDING")).live
    assert not owner_liveness(mine, queue("12_4")).live
    assert not owner_liveness(mine, queue("12_3", state="CANCELLED")).live
    verdict = owner_liveness(mine, unavailable)
    assert verdict.live and "whether job 12_3 lives is unknown: squeue: no answer" in verdict.why
    # The requeued job itself, and a former process of it that may still run.
    again = owner(slurm="12_3", restart=1)
    assert not owner_liveness(mine, queue("12_3"), again).live
    assert not owner_liveness(owner(ELSEWHERE, slurm="12_3"), unavailable, again).live
    assert owner_liveness(owner(ELSEWHERE, slurm="12_3", restart=1), unavailable, again).live


def test_jobs_of_another_cluster_are_left_alone(fake_slurm: FakeSlurm) -> None:
    assert not owner_liveness(owner(GONE, slurm="12", cluster="fake"), queue()).live
    assert owner_liveness(owner(GONE, slurm="12", cluster="other"), queue()).live


def test_the_refusal_says_what_to_do(tmp_path: Path) -> None:
    acquire(tmp_path, {}, me=owner(ELSEWHERE))
    with pytest.raises(LockHeld) as held:
        acquire(tmp_path, {})
    path = tmp_path / "lease" / "000001.json"
    assert str(held.value).endswith(
        f"(whether it still runs can only be seen on another-host); if it is gone, remove {path}"
    )
    path.unlink()
    acquire(tmp_path, {})


def test_variables_of_an_ended_job_are_ignored() -> None:
    leaked = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "2", "SLURM_RESTART_COUNT": "1"}
    assert this_owner(leaked, queue()).slurm is None
    found = this_owner(leaked, queue("10_2"))
    assert (found.slurm, found.restart) == ("10_2", 1)
    assert this_owner(leaked, unavailable).slurm == "10_2"


def test_a_half_written_lock_is_stale_after_a_while(tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    half = tmp_path / "lease" / "000004.json"
    half.write_text('{"token": ')
    with pytest.raises(LockHeld, match="another process is acquiring the lock right now"):
        acquire(tmp_path, {})
    os.utime(half, (0, 0))
    assert acquire(tmp_path, {}).path.name == "000005.json"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="cannot be written: not a directory"):
        acquire(tmp_path / "file", {})


def test_a_full_disk_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(EnvironmentFault, match="no space left on device"):
        acquire(tmp_path, {})
    assert not list((tmp_path / "lease").iterdir())


def test_an_outdated_listing_takes_no_lock_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process saw number 1 released; since then 2 was acquired, released and removed, and 3 was acquired."""
    acquire(tmp_path, {}).release()
    newest = lock_module._newest
    stale = newest(tmp_path / "lease")
    acquire(tmp_path, {}).release()
    mine = acquire(tmp_path, {})
    (tmp_path / "lease" / "000002.json").unlink()
    answers = [stale]
    monkeypatch.setattr(lock_module, "_newest", lambda leases: answers.pop() if answers else newest(leases))
    with pytest.raises(LockHeld):
        acquire(tmp_path, {})
    assert holder(tmp_path) == mine.owner
    assert not (tmp_path / "lease" / "000002.json").exists()


def _race(folder: str, rounds: int, barrier: Any, results: Any) -> None:
    won = []
    for number in range(rounds):
        barrier.wait()
        try:
            acquire(Path(folder) / str(number), {})
            won.append(number)
        except LockHeld:
            pass
    barrier.wait()  # no process ends, which would free its locks, before all have tried
    results.put(won)


@pytest.mark.slow
def test_only_one_process_takes_over_a_stale_lock(tmp_path: Path) -> None:
    rounds, racers = 40, 3
    for number in range(rounds):
        if number % 2:
            acquire(tmp_path / str(number), {}, me=owner(GONE))
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(racers), context.Queue()
    arguments = (str(tmp_path), rounds, barrier, results)
    processes = [context.Process(target=_race, args=arguments) for _ in range(racers)]
    for process in processes:
        process.start()
    won = sorted(number for _ in processes for number in results.get(timeout=60))
    for process in processes:
        process.join()
    assert won == list(range(rounds))


class Locks(RuleBasedStateMachine):
    """Three jobs acquire, release, die and are requeued; two never own the folder at the same time."""

    jobs = st.sampled_from(["1", "2", "3"])

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.alive = {"1", "2", "3"}
        self.restarts = dict.fromkeys(self.alive, 0)
        self.held: tuple[str, RunLock] | None = None

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(job=jobs)
    def take(self, job: str) -> None:
        if job not in self.alive or (self.held is not None and self.held[0] == job):
            return
        me = owner(token=f"{job}.{self.restarts[job]}", slurm=job, restart=self.restarts[job])
        try:
            taken = acquire(self.folder, {}, queue(*self.alive), me)
        except LockHeld:
            assert self.held is not None and self.held[0] in self.alive
        else:
            assert self.held is None or self.held[0] not in self.alive
            self.held = (job, taken)

    @precondition(lambda self: self.held is not None)
    @rule()
    def give_back(self) -> None:
        assert self.held is not None
        self.held[1].release()
        self.held = None

    @rule(job=jobs)
    def die(self, job: str) -> None:
        self.alive.discard(job)

    @rule(job=jobs)
    def come_back_requeued(self, job: str) -> None:
        if job not in self.alive:
            self.alive.add(job)
            self.restarts[job] += 1
            if self.held is not None and self.held[0] == job:
                # The former start is gone and the job is alive: its new start takes over.
                me = owner(token=f"{job}.{self.restarts[job]}", slurm=job, restart=self.restarts[job])
                self.held = (job, acquire(self.folder, {}, queue(*self.alive), me))

    @invariant()
    def the_folder_says_who(self) -> None:
        found = holder(self.folder)
        assert (found and found.token) == (self.held and self.held[1].owner.token)


TestLocks = Locks.TestCase
TestLocks.settings = settings(
    max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_few_old_locks_are_kept(tmp_path: Path) -> None:
    for _ in range(20):
        acquire(tmp_path, {}).release()
    names = sorted(path.name for path in (tmp_path / "lease").iterdir())
    assert names[-1] == "000020.json" and len(names) <= 10
    assert json.loads((tmp_path / "lease" / names[-1]).read_text())["released"] is True
