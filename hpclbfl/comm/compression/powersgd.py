"""PowerSGD: each matrix is sent as a product of two thin ones.

T. Vogels, S. P. Karimireddy, M. Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed
Optimization", NeurIPS 2019. One step of the power iteration that starts with the last step's Q: with M the sum over
ranks, P = M Q is summed over ranks and made orthonormal, Q = M^T P is summed, and P Q^T stands for M. Linear: the
same on any number of ranks. Vectors, and matrices for which the two would be no smaller, are sent whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import model_validator

from hpclbfl.comm.compression import Layer, Reduction, Setup
from hpclbfl.config.components import COMPRESSORS
from hpclbfl.config.sections.base import PositiveInt
from hpclbfl.config.sections.compression import AdaptConfig, Adapter, FeedbackConfig

if TYPE_CHECKING:
    from hpclbfl.comm.compression.volume import Volume


class PowerSgdConfig(FeedbackConfig):
    """Each parameter's gradient, as a matrix, is approximated by one of low rank."""

    rank: PositiveInt = 2
    """Of the approximation."""
    adapt: Adapter | None = None
    """Rule by which the rank changes: from `rank` down to what the rule names, and back."""

    @model_validator(mode="after")
    def _whole_ranks(self) -> PowerSgdConfig:
        if self.adapt is not None and (self.adapt.strongest < 1 or not float(self.adapt.strongest).is_integer()):
            raise ValueError(f"adapt.to: {self.adapt.strongest:g} is no rank: a whole number from 1 up")
        return self

    @property
    def is_linear(self) -> bool:
        """See `CompressionConfig`."""
        return True

    @property
    def level(self) -> float:
        """The rank."""
        return float(self.rank)

    @property
    def adapter(self) -> AdaptConfig | None:
        """See `CompressionConfig`."""
        return self.adapt


@COMPRESSORS.register("powersgd", PowerSgdConfig)
class PowerSgd:
    """Makes the reduction."""

    def __init__(self, config: PowerSgdConfig) -> None:
        self._config = config

    def reduction(self, setup: Setup) -> Reduction:
        """See `hpclbfl.comm.compression.build`."""
        from hpclbfl.comm.compression.low_rank import LowRank

        return LowRank(self._config.rank, self._config.feedback, setup)

    def volume(self, layers: Sequence[Layer], itemsize: int, num_clients: int) -> Volume:
        """Both thin matrices, and what is sent whole."""
        from hpclbfl.comm.compression.low_rank import num_sent
        from hpclbfl.comm.compression.volume import Volume

        return Volume(float(itemsize * sum(num_sent(layer, self._config.rank) for layer in layers)))
