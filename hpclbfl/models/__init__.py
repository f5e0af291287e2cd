"""Nets: torchvision's, a CIFAR-sized ViT from timm, the small residual nets of He et al., and small plain ones.

Each is made from its config and a description of the data. Weights are drawn from torch's global generator, so a seed
set before the call determines them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

from hpclbfl.config.components import MODELS
from hpclbfl.config.part_names import brief
from hpclbfl.config.sections import ModelConfig
from hpclbfl.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


class DataSpec(NamedTuple):
    """What a net is made for."""

    input_shape: tuple[int, ...]
    """Of a sample; images: channels, height, width."""
    num_classes: int


class ImageModelConfig(ModelConfig):
    """A net that takes square images from some size on."""

    min_side: ClassVar[int] = 8
    """Pixels."""

    @classmethod
    def takes(cls, side: int) -> bool:
        """Whether it takes images of so many pixels."""
        return side >= cls.min_side

    @classmethod
    def sides(cls) -> str:
        """Which it takes, in words."""
        return f"{cls.min_side} px and more"


def make_model(config: ModelConfig, data: DataSpec) -> nn.Module:
    """A freshly initialised net.

    Raises:
        ConfigError: it does not take samples of this shape; says which it takes. Or it has nothing to train.
    """
    if isinstance(config, ImageModelConfig):
        _, height, width = data.input_shape
        if height != width:
            raise ConfigError(f"data.resize: images of {width} x {height} px are not square; give the side in px")
        if not config.takes(height):
            raise ConfigError(
                f"model.name: {brief(config.name)} takes images of {config.sides()}, these have {height} px; "
                "set data.resize"
            )
    net: nn.Module = MODELS.make(config, data)
    if next(net.parameters(), None) is None:
        raise ConfigError(f"model.name: {brief(config.name)} has no parameters to train")
    return net
