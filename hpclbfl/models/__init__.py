"""Models: torchvision's, a CIFAR-sized ViT from timm, the small residual nets of He et al., and small plain ones.

Each is created from its config and a description of the data. Weights are drawn from torch's global generator, so a
seed set before the call determines them.
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
    """The data that a model is created for."""

    input_shape: tuple[int, ...]
    """Shape of a sample; for images channels, height, width."""
    num_classes: int


class ImageModelConfig(ModelConfig):
    """A model for square images of a minimum size."""

    min_side: ClassVar[int] = 8
    """Minimum side, pixels."""

    @classmethod
    def accepts(cls, side: int) -> bool:
        """Whether it accepts images with this side, pixels."""
        return side >= cls.min_side

    @classmethod
    def accepted_sides(cls) -> str:
        """The accepted sides, for messages."""
        return f"{cls.min_side} px and more"


def make_model(config: ModelConfig, data: DataSpec) -> nn.Module:
    """A model with initial weights.

    Raises:
        ConfigError: it does not accept samples of this shape, or has no parameters.
    """
    if isinstance(config, ImageModelConfig):
        _, height, width = data.input_shape
        if height != width:
            raise ConfigError(f"data.resize: images of {width} x {height} px are not square; give the side in px")
        if not config.accepts(height):
            raise ConfigError(
                f"model.name: {brief(config.name)} takes images of {config.accepted_sides()}, these have {height} px; "
                "set data.resize"
            )
    net: nn.Module = MODELS.make(config, data)
    if next(net.parameters(), None) is None:
        raise ConfigError(f"model.name: {brief(config.name)} has no parameters to train")
    return net
