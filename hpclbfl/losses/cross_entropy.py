"""Cross-entropy, nats: outputs [b, K, ...] are scores of the classes, targets [b, ...] are classes, whole numbers.

An evaluation reports it without label smoothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpclbfl.config.components import LOSSES
from hpclbfl.config.sections import LossConfig
from hpclbfl.config.sections.base import Fraction
from hpclbfl.core.errors import ConfigError
from hpclbfl.models import DataSpec

if TYPE_CHECKING:
    from torch import Tensor


class CrossEntropyConfig(LossConfig):
    """See the module."""

    label_smoothing: Fraction = 0.0
    """Part of the target that is spread evenly over all classes."""


@LOSSES.register("cross_entropy", CrossEntropyConfig)
class CrossEntropy:
    """See the module."""

    def __init__(self, config: CrossEntropyConfig, data: DataSpec) -> None:
        if data.target_dtype is None:
            raise ConfigError("loss.name: cross_entropy needs targets that are classes, whole numbers; these are not")
        self._smoothing = config.label_smoothing

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The sum over the batch."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, targets, reduction="sum", label_smoothing=self._smoothing)

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """[b], of each sample."""
        from torch.nn.functional import cross_entropy

        each = cross_entropy(outputs, targets, reduction="none", label_smoothing=self._smoothing)
        return each.reshape(len(each), -1).sum(1)

    def evaluate(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The same without smoothing."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, targets, reduction="sum")
