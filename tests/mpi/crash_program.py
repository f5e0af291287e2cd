"""Run under mpirun by test_crash.py: trains a job; one rank raises in its third step.

Usage: crash_program.py JOB.yaml RUN_FOLDER RANK
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hpclbfl.algorithms.client import Client
from hpclbfl.config.job import load_job
from hpclbfl.core.launched import launched_rank
from hpclbfl.training.session import run_job

job_file, run_folder, rank = sys.argv[1:]
forward_backward = Client.forward_backward


def faulty(client, state, *rest):  # type: ignore[no-untyped-def]
    if state.counters.step == 2:
        raise ValueError("the sensor fell off")
    forward_backward(client, state, *rest)


if launched_rank(os.environ) == int(rank):
    Client.forward_backward = faulty
run_job(load_job(Path(job_file)), Path(run_folder))
