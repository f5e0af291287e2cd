"""A vision transformer for small images: timm's, with patches of 4 px, 6 layers of width 192 and 3 heads.

2.7 million parameters at 32 px.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpclbfl.config.components import MODELS
from hpclbfl.models import DataSpec
from hpclbfl.models.nets.torchvision_nets import DropoutConfig

if TYPE_CHECKING:
    from torch import nn


class VitCifarConfig(DropoutConfig):
    """See the module."""

    @classmethod
    def accepts(cls, side: int) -> bool:
        """Only whole patches."""
        return side % 4 == 0 and 8 <= side <= 96

    @classmethod
    def accepted_sides(cls) -> str:
        """See `ImageModelConfig`."""
        return "multiples of 4 from 8 to 96 px"


@MODELS.register("vit_cifar", VitCifarConfig)
def make_vit_cifar(config: VitCifarConfig, data: DataSpec) -> nn.Module:
    """See the module."""
    # Before timm, which imports torchvision.
    import hpclbfl.core.vision  # noqa: F401

    # isort: split
    from timm.models.vision_transformer import VisionTransformer

    net: nn.Module = VisionTransformer(
        img_size=data.input_shape[1],
        patch_size=4,
        embed_dim=192,
        depth=6,
        num_heads=3,
        num_classes=data.num_classes,
        drop_rate=config.dropout or 0.0,
    )
    return net
