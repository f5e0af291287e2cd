"""Small nets without shortcuts, for images of 8 to 32 px: a VGG of three convolutions, an AlexNet of two.

They keep the characteristics of the large nets: 3x3 convolutions, each followed by pooling (K. Simonyan, A. Zisserman,
"Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015), or a wide first convolution with
stride (A. Krizhevsky, I. Sutskever, G. Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS
2012); then fully connected layers with dropout, and no normalisation.
"""

from __future__ import annotations

from torch import nn

from hpclbfl.models.pooling import AdaptiveAvgPool2d

DROPOUT = 0.5
"""Default dropout probability, that of the large nets."""


def vgg_small(side: int, num_classes: int, dropout: float | None) -> nn.Module:
    """Convolutions of 16, 32 and 64 channels, each with pooling: 41 thousand parameters at 16 px."""
    layers: list[nn.Module] = []
    channels_in = 3
    for channels in (16, 32, 64):
        layers += [nn.Conv2d(channels_in, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels_in = channels
    features = 64 * (side // 8) ** 2
    return _initialised(nn.Sequential(*layers, *_classifier(features, num_classes, dropout)))


def alexnet_small(num_classes: int, dropout: float | None) -> nn.Module:
    """Convolutions 5x5 with stride 2 and 3x3, of 24 and 48 channels: 25 thousand parameters."""
    layers = [
        nn.Conv2d(3, 24, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(24, 48, 3, padding=1),
        nn.ReLU(),
        AdaptiveAvgPool2d(2),
    ]
    return _initialised(nn.Sequential(*layers, *_classifier(48 * 4, num_classes, dropout)))


def _classifier(features: int, num_classes: int, dropout: float | None) -> list[nn.Module]:
    share = DROPOUT if dropout is None else dropout
    hidden = [nn.Flatten(), nn.Dropout(share), nn.Linear(features, 64), nn.ReLU()]
    return [*hidden, nn.Dropout(share), nn.Linear(64, num_classes)]


def _initialised(net: nn.Sequential) -> nn.Module:
    # Without normalisation, torch's default initialisation would shrink the activations from layer to layer.
    for module in net:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net
