"""Run under mpirun by test_faults.py: trains jobs that are asked to stop, each until it is done, in one MPI job.

Usage: stop_program.py LIST.json, a list of [job file, run folder, [[where, step, rank, signals], ...]].
The rank sends itself the signals in the passes of that step ("passes"), or while it writes the checkpoint of that step
("saving"). The steps after which the run ended each time are written to <run folder>/ends.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import hpclbfl.runs.checkpoint
from hpclbfl.algorithms.client import Client
from hpclbfl.comm.engines import communicator
from hpclbfl.config.job import load_job
from hpclbfl.config.sections import CommConfig
from hpclbfl.training.session import Session

comm = communicator(CommConfig())
forward_backward, write_files = Client.forward_backward, hpclbfl.runs.checkpoint._write_files
asks: list[tuple[str, int, int, list[str]]] = []


def ask(where: str, step: int) -> None:
    for item in [item for item in asks if (item[0], item[1]) == (where, step)]:
        asks.remove(item)
        for name in item[3] if item[2] == comm.rank else ():
            os.kill(os.getpid(), getattr(signal, f"SIG{name}"))


def asking_pass(client: Client, state: Any, *rest: Any) -> None:
    ask("passes", state.counters.step)
    forward_backward(client, state, *rest)


def asking_write(folder: Path, parts: dict[str, Any]) -> dict[str, str]:
    # Half of it is written, the rest afterwards.
    names = sorted(parts)
    checksums = write_files(folder, {name: parts[name] for name in names[:1]})
    ask("saving", int(folder.name.rpartition("-")[2]))
    return checksums | write_files(folder, {name: parts[name] for name in names[1:]})


Client.forward_backward, hpclbfl.runs.checkpoint._write_files = asking_pass, asking_write
for job_file, run_folder, wanted in json.loads(Path(sys.argv[1]).read_text()):
    ends: list[int] = []
    asks[:] = [tuple(item) for item in wanted]
    reason = "asked to stop"
    while reason == "asked to stop":
        session = Session(comm)
        try:
            outcome = session.run(load_job(Path(job_file)), Path(run_folder))
        except BaseException as error:
            session.fail(error, debug=True)
        reason = outcome.reason
        ends.append(outcome.step)
    if comm.rank == 0:
        (Path(run_folder) / "ends.json").write_text(json.dumps(ends))
comm.close()
