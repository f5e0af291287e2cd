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
    import torch
    from torch import nn


class DataSpec(NamedTuple):
    """The data that a model is created for."""

    input_shape: tuple[int, ...]
    """Of a sample; images: 3, height, width."""
    num_classes: int = 0
    """0: samples have no classes."""
    input_dtype: torch.dtype | None = None
    """Of inputs that are whole numbers; None: floating point, in the type of the net's parameters."""
    target_shape: tuple[int, ...] = ()
    """Of a sample's target; (): one number each."""
    target_dtype: torch.dtype | None = None
    """int64; None: floating point, in the type of the net's parameters."""


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

    def check(self, data: DataSpec) -> None:
        """See `ModelConfig`."""
        name = brief(self.name)
        if len(data.input_shape) != 3 or data.input_shape[0] != 3 or data.input_dtype is not None:
            kind = "floating point" if data.input_dtype is None else str(data.input_dtype).removeprefix("torch.")
            raise ConfigError(
                f"model.name: {name} takes images, floating point [3, height, width]; these samples are {kind} "
                f"{list(data.input_shape)}: give a net of your own"
            )
        if not data.num_classes or data.target_shape:
            has = f"targets of shape {list(data.target_shape)}" if data.num_classes else "no classes"
            raise ConfigError(
                f"model.name: {name} tells one class for each image; these data have {has}: give a net of your own"
            )
        _, height, width = data.input_shape
        if height != width:
            raise ConfigError(f"data.resize: images of {width} x {height} px are not square; give the side in px")
        if not self.accepts(height):
            raise ConfigError(
                f"model.name: {name} takes images of {self.accepted_sides()}, these have {height} px; set data.resize"
            )


def make_model(config: ModelConfig, data: DataSpec) -> nn.Module:
    """A model with initial weights.

    Raises:
        ConfigError: it does not take samples like these; says which it takes. Or it has nothing to train.
    """
    config.check(data)
    net: nn.Module = MODELS.make(config, data)
    if next(net.parameters(), None) is None:
        raise ConfigError(f"model.name: {brief(config.name)} has no parameters to train")
    return net
