"""QSGD: values are rounded at random to a few levels, without bias.

D. Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding", NeurIPS 2017, with one
scale for all clients: each layer's largest magnitude among them. Then the clients' whole numbers can be summed as such,
which is exact, and the sum is the same on any number of ranks. E C(g) = g; no error feedback is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from hpclbfl.comm.compression import Layer, Reduction, Setup
from hpclbfl.config.components import COMPRESSORS
from hpclbfl.config.sections.compression import CompressionConfig

if TYPE_CHECKING:
    from hpclbfl.comm.compression.volume import Volume


class QsgdConfig(CompressionConfig):
    """Values are rounded at random to whole multiples of a step, without bias."""

    bits: Literal[2, 4, 8] = 8
    """Of a value, its sign included: 1, 7 or 127 levels on either side of zero."""


@COMPRESSORS.register("qsgd", QsgdConfig)
class Qsgd:
    """Makes the reduction."""

    def __init__(self, config: QsgdConfig) -> None:
        self._bits = config.bits

    def reduction(self, setup: Setup) -> Reduction:
        """See `hpclbfl.comm.compression.build`."""
        from hpclbfl.comm.compression.quantised import Quantised

        return Quantised(self._bits, setup)

    def volume(self, layers: Sequence[Layer], itemsize: int, num_clients: int) -> Volume:
        """Values on the way out, and sums, which need more bits, on the way back."""
        from hpclbfl.comm.compression.quantised import holding, levels
        from hpclbfl.comm.compression.volume import Volume

        back = holding(levels(self._bits) * num_clients).itemsize
        return Volume((self._bits / 8 + back) / 2 * sum(layer.size for layer in layers))
