"""An algorithm and a batch policy of the user's own: trained, stopped and gone on with."""

from __future__ import annotations

from pathlib import Path

from hpclbfl.config.job import load_job
from hpclbfl.runs.log.reader import read_run
from hpclbfl.training.session import run_job
from tests.conftest import make_job

PARTS = """
from hpclbfl.batching import Plan
from hpclbfl.config.sections import BatchingConfig, LocalConfig
from hpclbfl.config.sections.base import PositiveInt

class Every:
    class Config(LocalConfig):
        every: PositiveInt

    def __init__(self, config, global_batch_size, num_train):
        self.every = config.every

    def shared(self, step):
        return False

    def needs_vote(self, step):
        return step % self.every == 0

    def averages(self, step, fired):
        return step % self.every == 0

    def why_never(self, step, num_averagings):
        return "too short"

class Counting:
    needs_seconds, warnings = False, ()

    def __init__(self, config, job, num_ranks, sizes, capacity):
        pass

    def init(self, sizes):
        return Plan(sizes, "start"), 0

    def update(self, seen, state):
        return None, state + 1
"""


def test_rounds_and_batches_are_those_of_the_parts(tmp_path: Path, toy_set: Path) -> None:
    (tmp_path / "mine.py").write_text(PARTS)
    job_file = tmp_path / "job.yaml"
    job_file.write_text(make_job(toy_set, stop={"steps": 7}, checkpoint={"every_steps": 4}).to_yaml())
    own = ["sync={kind: 'mine.py:Every', every: 3}", "batching={policy: 'mine.py:Counting', local_batch_size: 4}"]
    own = [text.replace("mine.py", str(tmp_path / "mine.py")) for text in own]
    built_in = load_job(job_file, ["sync={kind: fedavg, local_steps: 3}", "stop.steps=10"])
    run_job(load_job(job_file, own), tmp_path / "own")
    assert run_job(load_job(job_file, [*own, "stop.steps=10"]), tmp_path / "own").step == 10
    run_job(built_in, tmp_path / "fedavg")
    mine, theirs = read_run(tmp_path / "own"), read_run(tmp_path / "fedavg")
    assert (mine.num_attempts, mine.torn) == (2, [])
    for column in ("step", "round", "client", "local_batch_size", "loss"):
        assert mine.tables["steps"][column].tolist() == theirs.tables["steps"][column].tolist()
