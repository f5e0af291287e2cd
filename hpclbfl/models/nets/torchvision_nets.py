"""torchvision's models: ResNets, VGG, AlexNet and a vision transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hpclbfl.config.components import MODELS
from hpclbfl.config.sections.base import Fraction
from hpclbfl.models import DataSpec, ImageModelConfig

if TYPE_CHECKING:
    from torch import nn


class ResNetConfig(ImageModelConfig):
    """K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016."""

    stem: Literal["imagenet", "cifar"] = "imagenet"
    """imagenet: a 7x7 convolution of stride 2 and pooling; cifar: a 3x3 convolution of stride 1 (6 times the work at
    32 px)."""


class DropoutConfig(ImageModelConfig):
    """A model with dropout."""

    dropout: Fraction | None = None
    """Probability; null: the model's default (0.5; 0 for ViTs)."""


class VggConfig(DropoutConfig):
    """K. Simonyan, A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015."""

    min_side: ClassVar[int] = 32


class AlexNetConfig(DropoutConfig):
    """A. Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012."""

    min_side: ClassVar[int] = 63


class VitB16Config(DropoutConfig):
    """A. Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021."""

    @classmethod
    def accepts(cls, side: int) -> bool:
        """Only 224 px, because the position embeddings have a fixed size."""
        return side == 224

    @classmethod
    def accepted_sides(cls) -> str:
        """See `ImageModelConfig`."""
        return "224 px only (vit_cifar is for small images)"


@MODELS.register("resnet18", ResNetConfig)
@MODELS.register("resnet50", ResNetConfig)
def make_resnet(config: ResNetConfig, data: DataSpec) -> nn.Module:
    """A ResNet with the stem of the config."""
    from torch import nn

    net: nn.Module = _named(config.name, data.num_classes)
    if config.stem == "cifar":
        net.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = nn.Identity()
    return net


@MODELS.register("vgg11", VggConfig)
@MODELS.register("vgg11_bn", VggConfig)
@MODELS.register("alexnet", AlexNetConfig)
@MODELS.register("vit_b_16", VitB16Config)
def make_plain(config: DropoutConfig, data: DataSpec) -> nn.Module:
    """A model with the dropout of the config."""
    from hpclbfl.models.pooling import with_deterministic_pooling

    options = {} if config.dropout is None else {"dropout": config.dropout}
    net: nn.Module = _named(config.name, data.num_classes, **options)
    return with_deterministic_pooling(net)


def _named(name: str, num_classes: int, **options: Any) -> Any:
    from hpclbfl.core.vision import torchvision

    return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
