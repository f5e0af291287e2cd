"""Federated averaging: H local steps, then the mean of the clients' parameters (paper, Eq. 1b).

B. McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017. Two
things that are often forgotten: BatchNorm's running statistics are averaged with the parameters, and momentum
survives an averaging unless asked otherwise.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator, model_validator

from hpclbfl.algorithms.base import VOTE_EVERY, LocalTraining
from hpclbfl.config.components import ALGORITHMS
from hpclbfl.config.sections import LocalConfig
from hpclbfl.config.sections.base import PositiveFloat, PositiveInt


class FedAvgConfig(LocalConfig):
    """Clients train alone for H steps, then parameters are averaged."""

    local_steps: PositiveInt | Literal["proportional"] | None = None
    """H: optimizer steps of every client between two averagings; proportional: of each client in proportion to its
    speed."""
    max_local_steps: PositiveInt | None = None
    """local_steps proportional: H of the fastest client."""
    local_epochs: PositiveFloat | None = None
    """Instead of local_steps: passes over the training set (the clients' global count) between two averagings, rounded
    to whole steps, one at least."""

    @field_validator("local_steps", mode="before")
    @classmethod
    def _number_or_word(cls, value: Any) -> Any:
        if isinstance(value, bool | list | dict) or (isinstance(value, str) and value != "proportional"):
            raise ValueError("should be a whole number above 0, or 'proportional'")
        return value

    @model_validator(mode="after")
    def _one_length(self) -> FedAvgConfig:
        if (self.local_steps is None) == (self.local_epochs is None):
            raise ValueError("give exactly one of 'local_steps' and 'local_epochs'")
        if (self.max_local_steps is not None) != (self.local_steps == "proportional"):
            raise ValueError("'max_local_steps' goes with local_steps: proportional, and only with it")
        return self

    @property
    def title(self) -> str:
        """See `AlgorithmConfig`."""
        return "FA"

    @property
    def steps_of_fastest(self) -> int | None:
        """See `AlgorithmConfig`."""
        return self.max_local_steps

    def period(self, global_batch_size: int, num_train: int) -> int:
        """H."""
        if self.local_epochs is not None:
            return whole_steps(steps_of_epochs(self.local_epochs, num_train, global_batch_size))
        return self.max_local_steps or int(self.local_steps or 1)

    def rounding(self, global_batch_size: int, num_train: int) -> str:
        """See `AlgorithmConfig`."""
        if self.local_epochs is None:
            return ""
        steps = steps_of_epochs(self.local_epochs, num_train, global_batch_size)
        rounded = whole_steps(steps)
        if abs(steps - rounded) < 1e-9 * rounded:
            return ""
        return (
            f"sync.local_epochs {self.local_epochs:g}: {steps:.6g} steps of {global_batch_size} samples, "
            f"rounded to {rounded}"
        )


@ALGORITHMS.register("fedavg", FedAvgConfig)
class FederatedAveraging(LocalTraining):
    """See the module.

    Args:
        config: of the job.
        global_batch_size: B, samples per step.
        num_train: N, size of the training set.
    """

    def __init__(self, config: FedAvgConfig, global_batch_size: int, num_train: int) -> None:
        self.local_steps = config.period(global_batch_size, num_train)
        """H, steps between two averagings."""

    def exchanges_flags(self, step: int) -> bool:
        """Every min(H, 50) steps."""
        return step % min(self.local_steps, VOTE_EVERY) == 0

    def averages(self, step: int, flags: int) -> bool:
        """Every H steps."""
        return step % self.local_steps == 0

    def why_never(self, step: int, num_averagings: int) -> str:
        """The first round has not ended."""
        return f"a round has {self.local_steps} steps, the run {step}"


def steps_of_epochs(epochs: float, num_train: int, global_batch_size: int) -> float:
    """So many passes over the training set in steps, not rounded."""
    return epochs * num_train / global_batch_size


def whole_steps(steps: float) -> int:
    """H where it is given in epochs: rounded, at least 1."""
    return max(1, round(steps))
