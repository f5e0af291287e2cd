from __future__ import annotations

from typing import Any

import pytest
import torch

from hpclbfl.config.components import MODELS
from hpclbfl.core.errors import ConfigError
from hpclbfl.models import DataSpec, ImageModelConfig, make_model
from tests.components import config_of


def create_model(name: str, num_classes: int, size: int, **keys: Any) -> torch.nn.Module:
    return make_model(config_of(MODELS, name=name, **keys), DataSpec((3, size, size), num_classes))


@pytest.mark.parametrize(
    ("name", "size", "stem", "parameters"),
    [
        # Published sizes; torchvision's with their 1000-class heads replaced.
        ("resnet8", 8, "imagenet", 75_290),
        ("resnet20", 32, "imagenet", 269_722),
        ("resnet18", 32, "imagenet", 11_181_642),
        ("resnet18", 32, "cifar", 11_173_962),
        ("resnet50", 32, "imagenet", 23_528_522),
        ("vit_cifar", 32, "imagenet", 2_693_578),
        # Counted by hand: 3x3x3x16+16 + 3x3x16x32+32 + 3x3x32x64+64 + 64x4x64+64 + 64x10+10, and likewise.
        ("resnet8_gn", 8, "imagenet", 75_290),
        ("vgg_small", 16, "imagenet", 40_682),
        ("vgg_small", 8, "imagenet", 28_394),
        ("alexnet_small", 8, "imagenet", 25_242),
    ],
)
def test_models_map_images_to_class_scores(name: str, size: int, stem: str, parameters: int) -> None:
    net = create_model(name, 10, size, **({"stem": stem} if stem == "cifar" else {})).eval()
    assert net(torch.zeros(2, 3, size, size)).shape == (2, 10)
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn", "alexnet", "vit_b_16"])
def test_large_nets_have_the_datas_classes(name: str) -> None:
    with torch.device("meta"):
        net = create_model(name, 7, {"alexnet": 64, "vit_b_16": 224}.get(name, 32))
    last = [m for m in net.modules() if isinstance(m, torch.nn.Linear)][-1]
    assert last.out_features == 7


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        (
            "resnet81",
            32,
            r"'resnet81' is not known: did you mean 'resnet8'\? known are alexnet, alexnet_small, resnet18",
        ),
        ("alexnet", 32, "alexnet takes images of 63 px and more, these have 32 px; set data.resize"),
        ("vit_b_16", 32, r"vit_b_16 takes images of 224 px only"),
        ("vit_cifar", 30, "vit_cifar takes images of multiples of 4"),
        ("vgg11", 28, "vgg11 takes images of 32 px and more"),
    ],
)
def test_images_of_another_size_are_refused(name: str, size: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        create_model(name, 10, size)


def test_cifar_stem_and_dropout_are_for_nets_that_have_them() -> None:
    with pytest.raises(ConfigError, match="'stem' goes with name resnet18 or resnet50, not vgg11"):
        create_model("vgg11", 10, 32, stem="cifar")
    with pytest.raises(ConfigError, match=r"'dropout' goes with name alexnet or alexnet_small or .* not resnet8"):
        create_model("resnet8", 10, 32, dropout=0.5)
    vit = create_model("vit_cifar", 10, 32, dropout=0.3)
    assert {m.p for m in vit.modules() if isinstance(m, torch.nn.Dropout)} >= {0.3}


def test_smallest_sizes_are_as_stated() -> None:
    for name in ("resnet8", "resnet20", "resnet18", "resnet50"):
        config = MODELS.find(name).config
        assert issubclass(config, ImageModelConfig) and config.accepts(8) and not config.accepts(7)
        # In training mode: batch statistics need more than one value per channel.
        assert create_model(name, 3, 8)(torch.randn(2, 3, 8, 8)).shape == (2, 3)
