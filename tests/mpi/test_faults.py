"""Kills, stalls and stops under a real mpirun; every run is whole afterwards, and equal to one that was not
disturbed."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from hpclbfl.config.job import JobConfig
from hpclbfl.launch.mpirun import run_mpirun
from hpclbfl.runs.folder import RunFolder
from hpclbfl.runs.log.reader import read_run
from hpclbfl.training.session import run_job
from tests.conftest import make_job
from tests.training.test_checkpoint import untimed

pytestmark = [pytest.mark.mpi, pytest.mark.alone]

HERE = Path(__file__).parent
SYNCS: dict[str, Any] = {"bsp": {"kind": "bsp"}, "fedavg": {"kind": "fedavg", "local_steps": 4}}
# As `hpclbfl launch` does, with a program of ours instead of `hpclbfl train`.
LAUNCH = """
import sys
from pathlib import Path
from hpclbfl.launch.postmortem import launch_run
from hpclbfl.config.job import load_job
sys.exit(launch_run(load_job(Path(sys.argv[2])), Path(sys.argv[3]), 2, [sys.executable, *sys.argv[1:]]))
"""
KILL = r"was killed by SIGKILL \(out of memory\?\)"
FROM_3 = "; the last checkpoint is of step 3; the same command goes on from there"
FROM_6 = FROM_3.replace("3", "6")
STALLED = r"rank 0: step 7: waited \d+ s for rank 1 \(at step 7, last heard of \d+ s ago\)"


class Fault(NamedTuple):
    sync: str
    what: str
    """See fault_program.py."""
    rank: int
    """That it hits."""
    code: int
    """Exit code of the launcher."""
    error: str
    """The line that it ends with, a regular expression."""


WAITED = r"rank 0 waited 0:00:10 for all ranks to start \(comm.start_timeout_s\): some never did"
LEFT = r"rank 1 on [^ ]+ ended too early, with exit code 0, before the training began"
FAULTS = {
    "absent": Fault("bsp", "absent", 1, 1, WAITED),
    "leaves": Fault("bsp", "leaves", 1, 1, f"({WAITED}|{LEFT})"),
    "early": Fault("bsp", "kill-early", 1, 137, f"rank 1 on [^ ]+ {KILL}, before the training began"),
    "kill-0": Fault("bsp", "kill", 0, 137, f"rank 0 on [^ ]+ {KILL}, last heard of at step [67]{FROM_6}"),
    "kill-1": Fault("fedavg", "kill", 1, 137, f"rank 1 on [^ ]+ {KILL}, last heard of at step [67]{FROM_6}"),
    "saving": Fault("fedavg", "kill-saving", 1, 137, f"rank 1 on [^ ]+ {KILL}, last heard of at step 6{FROM_3}"),
    "publishing": Fault("bsp", "kill-publishing", 0, 137, f"rank 0 on [^ ]+ {KILL}, last heard of at step 6{FROM_3}"),
    "published": Fault("fedavg", "kill-published", 0, 137, f"rank 0 on [^ ]+ {KILL}, last heard of at step 6{FROM_6}"),
    "exit": Fault(
        "bsp", "exit", 1, 1, f"rank 1 on [^ ]+ ended too early, with exit code 0, last heard of at step [67]{FROM_6}"
    ),
    "sleep": Fault("bsp", "sleep", 1, 1, STALLED),
    "full": Fault("bsp", "full", 1, 1, ".*rank 1 cannot write a checkpoint: no space left on device"),
}
KILLED = {"bsp": "kill-0", "fedavg": "kill-1"}
# One run, asked to stop from outside, and again when it has gone on.
STOPS = (("USR2", 1, 4), ("TERM", 0, 8))
STOPPED, DAMAGED = "stopped", "damaged"
RESUMED = {name: fault.sync for name, fault in FAULTS.items()} | {STOPPED: "bsp", DAMAGED: "fedavg"}
STALL_S = 4
START_S, END_S = 150.0, 30.0
"""Bounds of a job's start, and of its end once a rank has gone, on a machine that others use, too."""


def job_of(toy_set: Path, sync: str) -> JobConfig:
    return make_job(
        toy_set,
        sync=SYNCS[sync],
        gradients={"scaler": {"factor": 2.0, "threshold": 0.3}},
        stop={"steps": 12},
        evaluate={"every_steps": 5},
        checkpoint={"every_steps": 3},
        comm={"stall_timeout_s": STALL_S},
    )


class Asked(NamedTuple):
    """A run that gets signals, and the steps after which it ends each time."""

    sync: str
    asks: list[list[Any]]
    ends: list[int]


def asked_runs() -> dict[str, Asked]:
    """Stops at steps drawn by lot: the vote is taken in every step, in local training in every fourth."""
    dice = random.Random(1)
    found = {}
    for case in range(2):
        first, rank = dice.randrange(1, 5), dice.randrange(2)
        second = dice.randrange(first + 2, 10)
        asks = [["passes", first, rank, ["USR2"]], ["passes", second, 1 - rank, ["TERM"]]]
        found[f"twice-{case}"] = Asked("bsp", asks, [first + 2, second + 2, 12])
    first, second, rank = dice.randrange(1, 3), dice.randrange(4, 7), dice.randrange(2)
    asks = [["passes", first, rank, ["USR2"]], ["passes", second, 1 - rank, ["TERM"]]]
    found["twice-local"] = Asked("fedavg", asks, [4, 8, 12])
    # In the middle of a save, time being up: that one is finished, and the one after the next vote holds.
    found["in-save-0"] = Asked("bsp", [["saving", 3, 0, ["USR2", "TERM"]], ["saving", 6, 1, ["TERM"]]], [4, 7, 12])
    found["in-save-1"] = Asked("fedavg", [["saving", 6, 1, ["USR2", "TERM"]]], [8, 12])
    return found


ASKED = asked_runs()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, toy_set: Path) -> Path:
    """With the job files, the undisturbed runs on two ranks, and those that were asked to stop from within."""
    base = tmp_path_factory.mktemp("faults")
    for sync in SYNCS:
        (base / f"{sync}.yaml").write_text(job_of(toy_set, sync).to_yaml())
    todo: list[list[Any]] = [[str(base / f"{sync}.yaml"), str(base / f"whole-{sync}"), []] for sync in SYNCS]
    todo += [[str(base / f"{run.sync}.yaml"), str(base / name), run.asks] for name, run in ASKED.items()]
    run_list(base, "stop_program.py", todo)
    return base


def run_list(base: Path, program: str, todo: list[list[Any]]) -> None:
    (base / "list.json").write_text(json.dumps(todo))
    assert run_mpirun(2, [sys.executable, str(HERE / program), str(base / "list.json")]) == 0


class Ended(NamedTuple):
    code: int
    after_s: float
    """From the fault to the end of the job."""
    stderr: str


def launch(base: Path, name: str, sync: str, *words: object, send: int | None = None) -> Ended:
    """Run fault_program.py to its end; `send`: to the launcher, once the program says that it is time."""
    hit = base / f"{name}.hit"
    hit.unlink(missing_ok=True)
    command = [HERE / "fault_program.py", base / f"{sync}.yaml", base / name, *words]
    process = subprocess.Popen([sys.executable, "-c", LAUNCH, *map(str, command)], stderr=subprocess.PIPE, text=True)
    try:
        if send is not None:
            wait_for(hit)
            process.send_signal(send)
        _, stderr = process.communicate(timeout=START_S + STALL_S + END_S)
    finally:
        process.kill()
    return Ended(process.returncode, time.time() - float(hit.read_text()), stderr)


def wait_for(hit: Path) -> None:
    end = time.monotonic() + START_S
    while not hit.exists():
        assert time.monotonic() < end, f"{hit.stem} did not come to its fault"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def disturbed(base: Path) -> dict[str, Ended]:
    """How every fault's run ended."""
    with ThreadPoolExecutor() as pool:
        jobs = {}
        for name, fault in FAULTS.items():
            jobs[name] = pool.submit(launch, base, name, fault.sync, fault.what, fault.rank)
            # The next one starts while this one ends.
            wait_for(base / f"{name}.hit")
    ended = {name: job.result() for name, job in jobs.items()}
    for name in KILLED.values():
        shutil.copytree(base / name, base / f"{name}-alone")
    # What rank 1 alone reads, and not whole: both ranks go back to the checkpoint before.
    shutil.copytree(base / "kill-1", base / DAMAGED)
    file = base / DAMAGED / "checkpoints" / "step-000000006" / "client-00003.pt"
    file.write_bytes(file.read_bytes()[:-100])
    return ended


@pytest.fixture(scope="module")
def stopped(base: Path) -> list[Ended]:
    """A run that was asked to stop by each of the signals in turn."""
    return [
        launch(base, STOPPED, "bsp", name, rank, step, send=getattr(signal, f"SIG{name}")) for name, rank, step in STOPS
    ]


@pytest.fixture(scope="module")
def resumed(base: Path, disturbed: dict[str, Ended], stopped: list[Ended]) -> Path:
    """All of them gone on with, in one MPI job of two ranks."""
    run_list(base, "stop_program.py", [[str(base / f"{sync}.yaml"), str(base / n), []] for n, sync in RESUMED.items()])
    return base


@pytest.mark.parametrize("name", list(FAULTS))
def test_a_fault_ends_the_job_in_time_and_is_named(disturbed: dict[str, Ended], name: str) -> None:
    fault, ended = FAULTS[name], disturbed[name]
    print(f"{name}: over {ended.after_s:.1f} s after the fault, exit code {ended.code}")
    assert ended.code == fault.code, ended.stderr
    assert ended.after_s < END_S + (STALL_S if fault.what == "sleep" else 0)
    errors = [line for line in ended.stderr.splitlines() if line.startswith("hpclbfl: error: ")]
    assert any(re.fullmatch(f"hpclbfl: error: {fault.error}", line) for line in errors), ended.stderr
    if fault.code == 137:
        assert len(errors) == 1 and ended.stderr.splitlines()[-1] == errors[0]


def test_stops_save_and_ask_to_be_started_again(stopped: list[Ended]) -> None:
    for ended, (_, _, step) in zip(stopped, STOPS, strict=True):
        print(f"over {ended.after_s:.1f} s after the signal, exit code {ended.code}")
        assert ended.code == 75, ended.stderr
        found = re.search(r"asked to stop: saved after step (\d+)", ended.stderr)
        assert found is not None and step < int(found[1]) < 12
        assert "hpclbfl: error" not in ended.stderr
        assert ended.after_s < END_S


@pytest.mark.parametrize("name", list(ASKED))
def test_asked_to_stop_it_ends_after_the_next_vote(base: Path, name: str) -> None:
    assert json.loads((base / name / "ends.json").read_text()) == ASKED[name].ends
    assert_equal_to_undisturbed(base, name, ASKED[name].sync)


@pytest.mark.parametrize("name", list(RESUMED))
def test_resumed_on_as_many_ranks_it_is_bit_identical(resumed: Path, name: str) -> None:
    assert_equal_to_undisturbed(resumed, name, RESUMED[name])
    texts = b"\n".join(read_run(resumed / name).tables["events"]["text"].tolist())
    assert (b"step-000000006/client-00003.pt: is damaged" in texts) is (name == DAMAGED)


def assert_equal_to_undisturbed(base: Path, name: str, sync: str) -> None:
    whole, run = read_run(base / f"whole-{sync}"), read_run(base / name)
    torn = [error for error in run.torn if "left no log" not in str(error)]
    assert not torn
    assert len(whole.tables["steps"]) == 12 * 4
    found = untimed(run)
    for key, value in untimed(whole).items():
        assert found[key] == value, key
    first, second = (torch.load(base / which / "model.pt") for which in (f"whole-{sync}", name))
    assert all(torch.equal(second[key], value) for key, value in first.items())
    assert not list((base / name / "checkpoints").glob(".*"))
    status = RunFolder(base / name).status()
    assert status is not None and status.state == "done"


@pytest.mark.parametrize("sync", list(SYNCS))
def test_resumed_on_another_number_of_ranks_it_is_equal_up_to_rounding(
    base: Path, toy_set: Path, sync: str, disturbed: dict[str, Ended]
) -> None:
    """Two ranks, one of them killed, go on as one process."""
    folder = base / f"{KILLED[sync]}-alone"
    status = RunFolder(folder).status()
    assert status is not None and status.state == "failed"
    error = FAULTS[KILLED[sync]].error.removesuffix("; the same command goes on from there")
    assert re.fullmatch(error, status.error)
    run_job(job_of(toy_set, sync), folder, resume="must")
    whole, run = read_run(base / f"whole-{sync}"), read_run(folder)
    # Up to the checkpoint it is the run on two ranks, afterwards that on one.
    assert run.tables["steps"]["step"].tolist() == whole.tables["steps"]["step"].tolist()
    np.testing.assert_allclose(run.tables["steps"]["loss"], whole.tables["steps"]["loss"], atol=1e-9)
    np.testing.assert_allclose(run.tables["evals"]["loss"], whole.tables["evals"]["loss"], atol=1e-9)
    assert run.num_attempts == 2
