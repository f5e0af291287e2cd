"""Mean squared error: of each sample the mean over its numbers; outputs have the shape of the targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpclbfl.config.components import LOSSES
from hpclbfl.config.sections import LossConfig
from hpclbfl.core.errors import ConfigError
from hpclbfl.models import DataSpec

if TYPE_CHECKING:
    from torch import Tensor


class MseConfig(LossConfig):
    """See the module."""


@LOSSES.register("mse", MseConfig)
class MeanSquaredError:
    """See the module."""

    def __init__(self, config: MseConfig, data: DataSpec) -> None:
        if data.target_dtype is not None:
            raise ConfigError("loss.name: mse needs targets of floating point; these are whole numbers")

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The sum over the batch."""
        return self.per_sample(outputs, targets).sum()

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """[b], of each sample."""
        if outputs.shape != targets.shape:
            # They would be broadcast, and the loss be another one.
            raise ConfigError(
                f"loss.name: mse: outputs have the shape {list(outputs.shape)}, targets {list(targets.shape)}: let the "
                "net give the targets' shape"
            )
        return (outputs - targets).square().reshape(len(outputs), -1).mean(dim=1)
