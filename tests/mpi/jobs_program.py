"""Run under mpirun by test_ranks.py: trains several jobs in one MPI job.

Usage: jobs_program.py LIST.json, a list of [job file, run folder, "train" | "gradient"].
"gradient" writes the first reduced gradient to <run folder>/gradient.npy instead of training.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from hpclbfl import build
from hpclbfl.config import load_job
from hpclbfl.experiment import make_experiment
from hpclbfl.run import Session
from hpclbfl.sections import CommConfig
from hpclbfl.train import _begin_record, _forward_backward

comm = build.communicator(CommConfig())
for job_file, run_folder, what in json.loads(Path(sys.argv[1]).read_text()):
    job = load_job(Path(job_file))
    session = Session(comm)
    try:
        if what == "train":
            session.run(job, Path(run_folder))
            continue
        exp = make_experiment(job, comm)
        record = _begin_record(exp)
        for client in exp.clients:
            if client is exp.clients[-1]:
                exp.reducer.arm()
            _forward_backward(exp, client, record, sum(exp.sizes))
        exp.reducer.finish()
        if comm.rank == 0:
            Path(run_folder).mkdir(parents=True)
            np.save(Path(run_folder) / "gradient.npy", exp.reducer.flat.numpy())
    except BaseException as error:
        session.fail(error, debug=True)
comm.close()
