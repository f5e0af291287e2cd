"""Run under mpirun by test_ranks.py: trains several jobs in one MPI job.

Usage: jobs_program.py LIST.json [ENGINE], a list of [job file, run folder, "train" | "gradient"].
"gradient" writes the first reduced gradient to <run folder>/gradient.npy instead of training. "train" also writes
samples<rank>.npy: client, step and sample of everything that the rank asked its loader for; and alike<rank>.txt: a
checksum of the averaged net and of what transforms have learnt, which all ranks share.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import torch

import hpclbfl.algorithms.terms
from hpclbfl.comm.engines import communicator
from hpclbfl.config.job import load_job
from hpclbfl.config.sections import CommConfig
from hpclbfl.training.loop import begin_record
from hpclbfl.training.session import Session
from hpclbfl.training.setup import make_state

load_batch = hpclbfl.algorithms.terms.load_batch


def recording(taken):  # type: ignore[no-untyped-def]
    """The trainer's way to a batch, writing down which samples the loader gave."""

    def run(rank, client):  # type: ignore[no-untyped-def]
        batch = rank.train.batch

        def spy(samples, passes):  # type: ignore[no-untyped-def]
            taken.extend((client, rank.counters.step, int(s)) for s in samples)
            return batch(samples, passes)

        rank.train.batch = spy
        found = load_batch(rank, client)
        del rank.train.batch
        return found

    return run


comm = communicator(CommConfig(engine=sys.argv[2] if len(sys.argv) > 2 else "auto"))
for job_file, run_folder, what in json.loads(Path(sys.argv[1]).read_text()):
    job = load_job(Path(job_file))
    session = Session(comm)
    try:
        if what == "train":
            taken: list[tuple[int, int, int]] = []
            hpclbfl.algorithms.terms.load_batch = recording(taken)
            session.run(job, Path(run_folder))
            np.save(Path(run_folder) / f"samples{comm.rank}.npy", np.array(taken))
            state = session._state
            shared = io.BytesIO()
            torch.save([state.mean.state, *(one.memory.state_dict() for one in state.learners)], shared)
            digest = hashlib.sha256(shared.getvalue()).hexdigest()
            (Path(run_folder) / f"alike{comm.rank}.txt").write_text(digest)
            continue
        state = make_state(job, comm)
        record = begin_record(state)
        reducer = state.shared_model.reducer
        reducer.begin_step()
        for client in state.clients:
            reducer.begin_pass(client is state.clients[-1])
            client.forward_backward(state, record, sum(state.sizes), load_batch(state, client.id))
            reducer.end_pass()
        reducer.finish()
        if comm.rank == 0:
            Path(run_folder).mkdir(parents=True)
            np.save(Path(run_folder) / "gradient.npy", reducer.flat.numpy())
    except BaseException as error:
        session.fail(error, debug=True)
comm.close()
