"""Residual nets for small images; see `hpclbfl.models.residual`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpclbfl.config.components import MODELS
from hpclbfl.models import DataSpec, ImageModelConfig

if TYPE_CHECKING:
    from torch import nn


@MODELS.register("resnet8", ImageModelConfig)
def make_resnet8(config: ImageModelConfig, data: DataSpec) -> nn.Module:
    """ResNet for small images with N = 1 (He et al., CVPR 2016, section 4.2): 75 thousand parameters."""
    from hpclbfl.models.residual import ResNetCifar

    return ResNetCifar(1, data.num_classes)


@MODELS.register("resnet8_gn", ImageModelConfig)
def make_resnet8_gn(config: ImageModelConfig, data: DataSpec) -> nn.Module:
    """resnet8 with group normalisation (groups of eight channels) in place of batch normalisation."""
    from hpclbfl.models.residual import ResNetCifar, group_norm

    return ResNetCifar(1, data.num_classes, group_norm)


@MODELS.register("resnet20", ImageModelConfig)
def make_resnet20(config: ImageModelConfig, data: DataSpec) -> nn.Module:
    """ResNet for small images with N = 3: 270 thousand parameters."""
    from hpclbfl.models.residual import ResNetCifar

    return ResNetCifar(3, data.num_classes)
