"""Run under mpirun by test_faults.py: trains a job in which something goes wrong on one rank.

Usage: fault_program.py JOB.yaml RUN_FOLDER FAULT RANK [STEP]

When it happens the time is written to RUN_FOLDER.hit.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import hpclbfl.runs.checkpoint
import hpclbfl.training.session
from hpclbfl.algorithms.client import Client
from hpclbfl.config.job import load_job
from hpclbfl.core.diagnostics import on_terminal
from hpclbfl.core.launched import launched_rank
from hpclbfl.training.session import run_job

job_file, run_folder, fault, rank = sys.argv[1:5]
fault_step = int(sys.argv[5]) if len(sys.argv) > 5 else 7
is_hit = launched_rank(os.environ) == int(rank)


def note() -> None:
    path = Path(f"{run_folder}.hit")
    temporary = path.with_suffix(".new")
    temporary.write_text(repr(time.time()))
    temporary.replace(path)


def die() -> None:
    note()
    os.kill(os.getpid(), signal.SIGKILL)


def wrap(module, name, before=None, after=None):  # type: ignore[no-untyped-def]
    """Let something happen before or after a function of the package is called."""
    taken = getattr(module, name)

    def wrapped(*arguments, **keys):  # type: ignore[no-untyped-def]
        if before is not None:
            before(*arguments)
        result = taken(*arguments, **keys)
        if after is not None:
            after(*arguments)
        return result

    setattr(module, name, wrapped)


def in_step(action):  # type: ignore[no-untyped-def]
    """In the passes of a step."""
    wrap(
        Client,
        "forward_backward",
        before=lambda client, state, *_: state.counters.step == fault_step and action(),
    )


def second(action):  # type: ignore[no-untyped-def]
    """At the second call: the checkpoint at step 6."""
    calls = []
    return lambda *_: (calls.append(1), len(calls) == 2 and action())


if is_hit:
    if fault == "kill-early":
        # The other rank waits in MPI's start.
        wrap(hpclbfl.training.session, "communicator", before=lambda *_: die())
    elif fault == "absent":
        # Before it waits itself: its own limit would be over at the same moment.
        note()
        time.sleep(300)
    elif fault == "leaves":
        # What is said depends on whether the other rank has come to MPI's start before.
        wrap(hpclbfl.training.session, "communicator", before=lambda *_: (note(), os._exit(0)))
    elif fault == "kill":
        in_step(die)
    elif fault == "kill-saving":
        wrap(hpclbfl.runs.checkpoint, "_write_files", after=second(die))
    elif fault == "kill-publishing":
        wrap(hpclbfl.runs.checkpoint, "write_json", after=second(die))
    elif fault == "kill-published":
        publish = second(die)
        wrap(hpclbfl.runs.checkpoint, "sync_folder", after=lambda path: path.name == "checkpoints" and publish())
    elif fault == "exit":
        in_step(lambda: (note(), os._exit(0)))
    elif fault == "sleep":
        in_step(lambda: (note(), time.sleep(300)))
    elif fault == "full":

        def full(*_: object) -> None:
            note()
            raise OSError(28, "No space left on device")

        wrap(hpclbfl.runs.checkpoint, "_write_files", before=second(full))
    elif fault in ("USR2", "TERM"):
        # Sent by the test, from outside; here a sign that it is time.
        in_step(note)
if fault in ("USR2", "TERM"):
    wrap(Client, "forward_backward", before=lambda *_: time.sleep(0.05))
overrides = ["comm.start_timeout_s=10"] if fault in ("absent", "leaves") else None
with on_terminal():
    outcome = run_job(load_job(Path(job_file), overrides), Path(run_folder))
sys.exit(75 if outcome.reason == "asked to stop" else 0)
