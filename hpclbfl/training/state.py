"""Everything that a run holds on one rank: its clients and models, data, schedule, batch policy and how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpclbfl.algorithms.base import Algorithm
from hpclbfl.algorithms.state import RankState
from hpclbfl.batching import BatchPolicy
from hpclbfl.data.datasets import Dataset
from hpclbfl.data.loaders import BatchLoader
from hpclbfl.optim.schedule import Schedule
from hpclbfl.runs.fingerprint import Identity
from hpclbfl.training.evaluate import Score
from hpclbfl.training.footprint import Footprint


@dataclass(kw_only=True)
class TrainState(RankState):
    """One rank's share of a run."""

    algorithm: Algorithm
    dataset: Dataset
    test: BatchLoader
    identity: Identity
    start_sizes: tuple[int, ...]
    """b_c of every client as the run begins, before the policy has its say."""
    policy: BatchPolicy
    policy_state: Any
    """What the policy's next plan depends on."""
    schedule: Schedule
    footprint: Footprint
    """Of this rank's batches in memory."""
    notes: tuple[str, ...] = ()
    """What is worth saying as the run begins."""
    score: tuple[int, Score] | None = None
    """Of the newest evaluation on the test split, and the optimizer steps taken before it."""

    @property
    def lr_factor(self) -> float:
        """What the learning rate is multiplied with because B has grown."""
        return self.job.batching.lr_factor(sum(self.sizes) / sum(self.start_sizes))

    @property
    def global_batch_size(self) -> int:
        """B under the plan in force: samples per step, of clients that hold any."""
        return int(self.sampler.counts(self.sizes).sum())

    @property
    def num_train(self) -> int:
        """N, size of the training set."""
        return len(self.dataset.train)

    @property
    def has_classes(self) -> bool:
        """Whether each sample's target is its class, so that answers are right or wrong."""
        return bool(self.dataset.classes) and self.train.target_shape == () and self.train.target_dtype is not None

    @property
    def epoch(self) -> float:
        """Samples so far / N."""
        return self.counters.num_samples / self.num_train

    def check_memory(self) -> None:
        """Refuse batches under the plan in force that this rank's memory cannot hold. Raises EnvironmentFault."""
        counts = self.sampler.counts(self.sizes)
        self.footprint.check_step(max(int(counts[client.id]) for client in self.clients))
