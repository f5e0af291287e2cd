"""Random values of each layer: the places follow from a key that all ranks know, and are not sent.

S. U. Stich, J.-B. Cordonnier, M. Jaggi, "Sparsified SGD with Memory", NeurIPS 2018. With `draw: shared` all clients
send the same places in a step, which is linear: ranks' sums are reduced as they are, and a rank keeps the residual of
its sum. With `draw: own` each client draws for itself, so that together they send more places. With error feedback
values are sent as they are, without it times n / k, which is unbiased.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from hpclbfl.comm.compression import Key, Layer, Reduction, Setup, kept
from hpclbfl.config.components import COMPRESSORS
from hpclbfl.config.sections.compression import SparseConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from hpclbfl.comm.compression.volume import Volume
else:
    from hpclbfl.core.lazy import lazy

    torch = lazy("torch")


class RandomKConfig(SparseConfig):
    """Random values of each parameter."""

    draw: Literal["shared", "own"] = "shared"
    """shared: all clients send the same places in a step; own: each client draws its own."""

    @property
    def is_linear(self) -> bool:
        """See `CompressionConfig`."""
        return self.draw == "shared"


@COMPRESSORS.register("randomk", RandomKConfig)
def make_randomk(config: RandomKConfig) -> RandomK | SharedRandomK:
    """See the module."""
    return (RandomK if config.draw == "own" else SharedRandomK)(config.ratio, config.feedback)


@dataclass(frozen=True)
class RandomK:
    """A `hpclbfl.comm.compression.Codec`: the values at the places that the key draws."""

    ratio: float
    feedback: bool

    def at(self, level: float) -> RandomK:
        """The same with another ratio."""
        return replace(self, ratio=level)

    def size(self, num_values: int, itemsize: int) -> int:
        """See `Codec`."""
        return kept(num_values, self.ratio) * itemsize

    def encode(self, values: Tensor, key: Key) -> Tensor:
        """See `Codec`."""
        sent = values[self._places(values, key)]
        return (sent if self.feedback else sent * (values.numel() / sent.numel())).view(torch.uint8)

    def decode_(self, payload: Tensor, out: Tensor, key: Key, alpha: float = 1.0) -> None:
        """See `Codec`."""
        out.index_add_(0, self._places(out, key), payload.view(out.dtype), alpha=alpha)

    def _places(self, values: Tensor, key: Key) -> Tensor:
        from hpclbfl.comm.compression.draws import places

        return places(values.numel(), kept(values.numel(), self.ratio), key, values.device)


@dataclass(frozen=True)
class SharedRandomK:
    """Makes the reduction of `draw: shared`."""

    ratio: float
    feedback: bool

    def reduction(self, setup: Setup) -> Reduction:
        """See `hpclbfl.comm.compression.build`."""
        from hpclbfl.comm.compression.shared_places import SharedPlaces

        return SharedPlaces(self.feedback, setup)

    def volume(self, layers: Sequence[Layer], itemsize: int, num_clients: int) -> Volume:
        """The values alone."""
        from hpclbfl.comm.compression.volume import Volume

        return Volume(float(itemsize * sum(kept(layer.size, self.ratio) for layer in layers)))
