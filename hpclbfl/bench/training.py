"""Our training step on random images, driven from outside the training loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpclbfl.algorithms.record import StepRecord
from hpclbfl.comm.base import Communicator
from hpclbfl.config.components import MODELS
from hpclbfl.config.job import JobConfig, parse_job
from hpclbfl.core.errors import ConfigError
from hpclbfl.data.images import encode_png
from hpclbfl.data.packed import write_packed
from hpclbfl.data.splits import ArrayImages
from hpclbfl.models import ImageModelConfig
from hpclbfl.planner.measure import take_step
from hpclbfl.runs.log.writer import RunLog
from hpclbfl.training.rebalance import observe
from hpclbfl.training.setup import make_state
from hpclbfl.training.steplog import StepLog

NUM_CLASSES = 10
IMAGES = "images.h5"
"""Name of the packed set in a benchmark's scratch folder."""
SCALER = {"factor": 2.0, "threshold": 0.5}
_SIDES = (32, 64, 224)
_STEPS_PER_PASS = 4


def image_side(model: str) -> int:
    """The smallest common image size that a net takes, pixels.

    Raises:
        ConfigError: an unknown net; lists the known ones.
    """
    found = MODELS.find(model)
    if found is None or not issubclass(found.config, ImageModelConfig):
        raise ConfigError(f"--model {model}: unknown net; known: {', '.join(MODELS.names())}")
    return next(side for side in _SIDES if found.config.accepts(side))


def write_images(folder: Path, model: str, global_batch_size: int, passes: int = _STEPS_PER_PASS) -> Path:
    """Write a packed set of random images of the net's size, `passes` times as many as a step takes."""
    side, count = image_side(model), passes * global_batch_size
    rng = np.random.default_rng(0)

    def images(number: int) -> Iterator[tuple[bytes, int]]:
        source = ArrayImages(rng.integers(0, 256, (number, side, side, 3), dtype=np.uint8), "random")
        return ((encode_png(source.image(k)), k % NUM_CLASSES) for k in range(number))

    path = folder / IMAGES
    splits = {"train": images(count), "test": images(NUM_CLASSES)}
    write_packed(path, [f"class{k}" for k in range(NUM_CLASSES)], splits)
    return path


def make_job(images: Path, model: str, batch: int, num_ranks: int, **sections: Any) -> JobConfig:
    """A job of one client per rank, SGD with momentum, the scaler on unless `gradients` says otherwise.

    Raises:
        ConfigError: an unknown net, or sections that do not fit.
    """
    values: dict[str, Any] = {
        "name": "bench",
        "clients": num_ranks,
        "data": {"name": "packed", "path": str(images), "augment": "crop_flip", "in_memory": True},
        "model": {"name": model},
        "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4},
        "gradients": {"scaler": SCALER},
        "batching": {"local_batch_size": batch},
    }
    return parse_job({**values, **sections}, "bench")


@dataclass(frozen=True)
class StepSettings:
    """Settings of the benchmarks of whole steps."""

    rounds: int = 9
    num_ranks: int = 2
    model: str = "resnet18"
    batch: int = 32
    """Samples per rank and step."""
    steps: int = 12
    """Timed per launch and variant."""
    warmup: int = 4

    def describe(self) -> str:
        """The ranks and the work of a step, in words."""
        work = f"{self.model}, {image_side(self.model)} px, batch {self.batch} per rank"
        return f"on {self.num_ranks} ranks: {work}"


class Training:
    """A run of this package, a step at a time: data, step, averaging, exchange of times and log are those of training.

    Args:
        job: with its clients resolved.
        log: the file to write, of this rank alone.
    """

    def __init__(self, job: JobConfig, comm: Communicator, log: Path) -> None:
        self.state = make_state(job, comm)
        self.device = self.state.device
        self._is_shared = self.state.algorithm.shares_model(1)
        self._steps = StepLog(RunLog(log, {}), self.state.clock)
        self._open: StepRecord | None = None
        """The last step, while an averaging may follow."""

    def step(self) -> None:
        """One optimizer step of every client, without the averaging that may follow."""
        self._finish(averages=False)
        self._open = record = take_step(self.state)
        record.epoch, record.num_samples = self.state.epoch, self.state.counters.num_samples
        if self._is_shared:
            self._finish(averages=False)

    def average(self) -> None:
        """Average the clients' models after a step."""
        if self._open is None:
            raise RuntimeError("clients average after a local step")
        self.state.replicas.average_clients(self.state, self._open)
        self._finish(averages=True)

    def _finish(self, averages: bool) -> None:
        if self._open is not None:
            observe(self.state, self._open, averages)
            self._steps.add(self._open)
            self._open = None
