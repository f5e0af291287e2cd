"""An algorithm, a batch policy, a transform, a detector and a teacher of one's own: trained, and gone on with."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpclbfl.config.job import load_job
from hpclbfl.runs.log.reader import read_run
from hpclbfl.training.session import run_job
from tests.conftest import make_job

PARTS = """
from dataclasses import dataclass

import torch

from hpclbfl.algorithms.base import LocalTraining
from hpclbfl.batching import Plan
from hpclbfl.config.sections import BatchingConfig, DetectorConfig, LocalConfig, TeacherConfig, TransformConfig
from hpclbfl.config.sections.base import PositiveFloat, PositiveInt
from hpclbfl.core.state import checkpointed

class Every(LocalTraining):
    class Config(LocalConfig):
        every: PositiveInt

    def __init__(self, config, global_batch_size, num_train):
        self.every = config.every

    def exchanges_flags(self, step):
        return step % self.every == 0

    def averages(self, step, flags):
        return step % self.every == 0

class Counting:
    needs_seconds, warnings = False, ()

    def __init__(self, config, job, num_ranks, sizes, capacity):
        pass

    def init(self, sizes):
        return Plan(sizes, "start"), 0

    def update(self, seen, state):
        return None, state + 1

class Smoothed:
    '''The exponential mean of the gradients so far.'''

    class Config(TransformConfig):
        decay: PositiveFloat

    def __init__(self, config):
        self.decay = config.decay

    def init(self, layout):
        return torch.zeros(layout.size, dtype=layout.dtype, device=layout.device)

    def update(self, gradient, state, ctx):
        mean = self.decay * state + (1 - self.decay) * gradient.flat
        return gradient.replaced(mean), mean, {}

@checkpointed
@dataclass(frozen=True)
class Seen:
    change: torch.Tensor
    steps: int

class EveryThird:
    needs_layers = False

    class Config(DetectorConfig):
        high: PositiveFloat = 1.0

    def __init__(self, config):
        self.high = config.high

    def init(self, layout):
        return Seen(torch.zeros((), dtype=torch.float64), 0)

    def observe(self, gradient, state, ctx):
        change = torch.full_like(gradient.sq_norm, self.high if state.steps % 3 == 2 else 0.0)
        return Seen(change, state.steps + 1)

@checkpointed
@dataclass(frozen=True)
class Learnt:
    factor: torch.Tensor
    lessons: int = 0

# Halves the gradient with each lesson.
class Halving:
    class Config(TeacherConfig):
        by: PositiveFloat = 2.0

    def __init__(self, config):
        self.by = config.by

    def init(self, layout, num_clients):
        return Learnt(torch.ones((), dtype=torch.float64))

    def collect(self, found, ctx, change):
        seen = torch.tensor([float(len(found.own))])
        found.sum_(seen)
        return seen

    def test(self, lesson, state, ctx):
        return {}

    def learn(self, lesson, state, begins, found, ctx):
        return Learnt(state.factor / self.by, state.lessons + 1), {"seen": lesson[0]}

    def has_drifted(self, error, reference):
        return False

    def apply(self, gradient, state, ctx, change):
        return gradient.scaled(state.factor), {"halved": state.factor}
"""


def write_parts(folder: Path, toy_set: Path, **sections: object) -> Path:
    (folder / "mine.py").write_text(PARTS)
    job_file = folder / "job.yaml"
    job_file.write_text(
        make_job(toy_set, **{"stop": {"steps": 7}, "checkpoint": {"every_steps": 4}, **sections}).to_yaml()
    )
    return job_file


def test_rounds_and_batches_are_those_of_the_parts(tmp_path: Path, toy_set: Path) -> None:
    job_file = write_parts(tmp_path, toy_set)
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


def test_a_transform_acts_in_its_place_and_goes_on_bit_for_bit(tmp_path: Path, toy_set: Path) -> None:
    """Without momentum of its own, SGD on smoothed gradients is SGD with momentum, dampened alike."""
    source = tmp_path / "mine.py"
    for sync in ("{kind: bsp}", "{kind: fedavg, local_steps: 3}"):
        job_file = write_parts(tmp_path, toy_set)
        name = sync.split()[1].strip(",}")
        own = [f"sync={sync}", "optimizer={lr: 0.05}"]
        own += [f"gradients={{chain: [{{name: '{source}:Smoothed', decay: 0.75}}]}}"]
        run_job(load_job(job_file, own), tmp_path / f"{name}-cut")
        run_job(load_job(job_file, [*own, "stop.steps=10"]), tmp_path / f"{name}-cut")
        run_job(load_job(job_file, [*own, "stop.steps=10"]), tmp_path / f"{name}-whole")
        cut, whole = (read_run(tmp_path / f"{name}-{which}").tables["steps"] for which in ("cut", "whole"))
        # SGD's buffer is 0.75 b + g, four times the mean, but for what differs in the first steps.
        sgd = [f"sync={sync}", "optimizer={lr: 0.0125, momentum: 0.75}", "stop.steps=10"]
        run_job(load_job(job_file, sgd), tmp_path / f"{name}-sgd")
        usual = read_run(tmp_path / f"{name}-sgd").tables["steps"]
        assert cut["loss"].tolist() == whole["loss"].tolist()
        np.testing.assert_allclose(whole["loss"], usual["loss"], rtol=1e-9)


def test_a_detector_decides_for_the_scaler_and_for_selsync(tmp_path: Path, toy_set: Path) -> None:
    job_file = write_parts(tmp_path, toy_set)
    detector = f"{tmp_path / 'mine.py'}:EveryThird"
    scaled = load_job(job_file, [f"gradients={{scaler: {{factor: 2.0, change: '{detector}'}}}}", "stop.steps=5"])
    run_job(scaled, tmp_path / "scaled")
    # Its state is in the checkpoint of step 4.
    again = load_job(job_file, [f"gradients={{scaler: {{factor: 2.0, change: '{detector}'}}}}", "stop.steps=9"])
    run_job(again, tmp_path / "scaled")
    steps = read_run(tmp_path / "scaled").tables["steps"]
    assert steps["scale"][steps["client"] == 0].tolist() == [1, 1, 2] * 3
    sync = f"sync={{kind: selsync, threshold: 0.7, change: {{name: '{detector}', high: 0.8}}}}"
    run_job(load_job(job_file, [sync, "stop.steps=9"]), tmp_path / "selsync")
    rounds = read_run(tmp_path / "selsync").tables["steps"]
    assert rounds["round"][rounds["client"] == 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_teacher_learns_when_a_detector_asks_and_goes_on_bit_for_bit(tmp_path: Path, toy_set: Path) -> None:
    job_file, source = write_parts(tmp_path, toy_set), tmp_path / "mine.py"
    refresh = f"refresh: '{source}:EveryThird', every: 1, threshold: 0.5, train_steps: 1"
    own = [f"gradients={{teacher: {{kind: '{source}:Halving', by: 2, {refresh}}}}}"]
    run_job(load_job(job_file, own), tmp_path / "own")
    run_job(load_job(job_file, [*own, "stop.steps=10"]), tmp_path / "own")
    found = read_run(tmp_path / "own")
    metrics = found.tables["metrics"]
    # At first, and in the step after each third one.
    seen = metrics[metrics["name"] == b"seen"]
    assert seen["step"].tolist() == [0, 3, 6, 9] and set(seen["value"]) == {4.0}
    halved = metrics["value"][metrics["name"] == b"halved"]
    assert halved.tolist() == [0.5] * 3 + [0.25] * 3 + [0.125] * 3 + [0.0625]
    assert found.num_attempts == 2
