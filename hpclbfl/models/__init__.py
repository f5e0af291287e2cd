"""Nets by name: torchvision's, a CIFAR-sized ViT from timm, the small residual nets of He et al., and small plain ones.

Every net is made for the data's classes and image size, with weights drawn from torch's global generator, so a seed
set before the call fixes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from hpclbfl.errors import ConfigError
from hpclbfl.models.pooling import with_deterministic_pooling
from hpclbfl.models.resnet_cifar import resnet8, resnet8_gn, resnet20
from hpclbfl.models.small_plain import alexnet_small, vgg_small

Make = Callable[[int, int, str, float | None], nn.Module]
"""(num_classes, image_size px, stem, dropout) to a module."""


@dataclass(frozen=True)
class Net:
    """How a net is made and which square images it takes."""

    make: Make
    takes: Callable[[int], bool]
    sizes: str
    """`takes` in words, for the error."""
    has_dropout: bool = False


def _resnet(name: str) -> Make:
    def make(num_classes: int, image_size: int, stem: str, dropout: float | None) -> nn.Module:
        net: nn.Module = _torchvision_net(name, num_classes)
        if stem == "cifar":
            net.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
            nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
            net.maxpool = nn.Identity()
        return net

    return make


def _plain(name: str) -> Make:
    def make(num_classes: int, image_size: int, stem: str, dropout: float | None) -> nn.Module:
        options = {} if dropout is None else {"dropout": dropout}
        net: nn.Module = _torchvision_net(name, num_classes, **options)
        return with_deterministic_pooling(net)

    return make


def _torchvision_net(name: str, num_classes: int, **options: Any) -> Any:
    from hpclbfl.vision import torchvision

    return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)


def _vit_cifar(num_classes: int, image_size: int, stem: str, dropout: float | None) -> nn.Module:
    # timm imports torchvision, which may need help.
    import hpclbfl.vision  # noqa: F401

    # isort: split
    from timm.models.vision_transformer import VisionTransformer

    net: nn.Module = VisionTransformer(
        img_size=image_size,
        patch_size=4,
        embed_dim=192,
        depth=6,
        num_heads=3,
        num_classes=num_classes,
        drop_rate=dropout or 0.0,
    )
    return net


def _at_least(size: int) -> tuple[Callable[[int], bool], str]:
    return lambda given: given >= size, f"{size} px and more"


NETS: dict[str, Net] = {
    "resnet8": Net(resnet8, *_at_least(8)),
    "resnet20": Net(resnet20, *_at_least(8)),
    "resnet18": Net(_resnet("resnet18"), *_at_least(8)),
    "resnet50": Net(_resnet("resnet50"), *_at_least(8)),
    "vgg11": Net(_plain("vgg11"), *_at_least(32), has_dropout=True),
    "vgg11_bn": Net(_plain("vgg11_bn"), *_at_least(32), has_dropout=True),
    "alexnet": Net(_plain("alexnet"), *_at_least(63), has_dropout=True),
    "vit_b_16": Net(
        _plain("vit_b_16"), lambda given: given == 224, "224 px alone (vit_cifar is for small images)", has_dropout=True
    ),
    "vit_cifar": Net(
        _vit_cifar,
        lambda given: given % 4 == 0 and 8 <= given <= 96,
        "multiples of 4 from 8 to 96 px",
        has_dropout=True,
    ),
    "resnet8_gn": Net(resnet8_gn, *_at_least(8)),
    "vgg_small": Net(vgg_small, *_at_least(8), has_dropout=True),
    "alexnet_small": Net(alexnet_small, *_at_least(8), has_dropout=True),
}


def create_model(
    name: str, num_classes: int, image_size: int, stem: str = "imagenet", dropout: float | None = None
) -> nn.Module:
    """A freshly initialised net for square images of `image_size` px.

    Raises:
        ConfigError: an unknown name (lists the known ones), an image size that the net cannot take (says which it
            takes), or a CIFAR stem or dropout for a net that has none.
    """
    if name not in NETS:
        raise ConfigError(f"model.name: unknown net '{name}'; known: {', '.join(NETS)}")
    if stem == "cifar" and name not in ("resnet18", "resnet50"):
        raise ConfigError(f"model.stem: 'cifar' is for resnet18 and resnet50, not {name}")
    net = NETS[name]
    if not net.takes(image_size):
        raise ConfigError(
            f"model.name: {name} takes images of {net.sizes}, these have {image_size} px; set data.resize"
        )
    if dropout is not None and not net.has_dropout:
        raise ConfigError(f"model.dropout: {name} has no dropout; leave it out")
    return net.make(num_classes, image_size, stem, dropout)
