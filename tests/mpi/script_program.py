"""A user's script on several ranks: trains a job, twice, and looks at its tables. `JOB.yaml FOLDER [fail]`."""

import json
import os
import sys
from pathlib import Path

import hpclbfl
from hpclbfl.core.launched import launched_rank

job = hpclbfl.load_job(sys.argv[1])
if len(sys.argv) > 3:
    from hpclbfl.training import loop

    begin_record = loop.begin_record

    def begin(state):
        if state.comm.rank == 1 and state.counters.step == 1:
            raise ValueError("only here")
        return begin_record(state)

    loop.begin_record = begin
first = hpclbfl.run(job, f"{sys.argv[2]}/first")
second = hpclbfl.run(job, f"{sys.argv[2]}/second")
assert first.steps["loss"].to_list() == second.steps["loss"].to_list()
assert first.steps["rank"].unique().to_list() == [0, 1]
other = "horovod" if job.comm.engine == "mpi" else "mpi"
if len(sys.argv) > 3:
    sys.exit("the failure is gone")
said = []
try:
    hpclbfl.run(hpclbfl.load_job(sys.argv[1], {"comm.engine": other}), f"{sys.argv[2]}/third")
except hpclbfl.ConfigError as error:
    said.append(str(error))
said.append(f"same {first.state} {first.top1 == second.top1}")
# mpirun mixes what ranks print.
Path(sys.argv[2], f"said-{launched_rank(os.environ)}.json").write_text(json.dumps(said))
