"""Small nets without shortcuts, for images of 8 to 32 px; see `hpclbfl.models.plain`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpclbfl.config.components import MODELS
from hpclbfl.models import DataSpec
from hpclbfl.models.nets.torchvision_nets import DropoutConfig

if TYPE_CHECKING:
    from torch import nn


@MODELS.register("vgg_small", DropoutConfig)
def make_vgg_small(config: DropoutConfig, data: DataSpec) -> nn.Module:
    """A small VGG for images of 8 to 32 px: 41 thousand parameters at 16 px."""
    from hpclbfl.models.plain import vgg_small

    return vgg_small(data.input_shape[1], data.num_classes, config.dropout)


@MODELS.register("alexnet_small", DropoutConfig)
def make_alexnet_small(config: DropoutConfig, data: DataSpec) -> nn.Module:
    """A small AlexNet for images of 8 to 32 px: 25 thousand parameters."""
    from hpclbfl.models.plain import alexnet_small

    return alexnet_small(data.num_classes, config.dropout)
