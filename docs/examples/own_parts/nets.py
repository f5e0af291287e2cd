"""A net of one's own: two convolutions of any width, with BatchNorm and dropout."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpclbfl.config.sections import ModelConfig
from hpclbfl.config.sections.base import Fraction, PositiveInt
from hpclbfl.models import DataSpec


class WideNet(nn.Module):
    """Made with the job's section and with what the data are like; its weights come from torch's global generator."""

    class Config(ModelConfig):
        """The keys that a job may give beside `name`."""

        width: PositiveInt = 8
        """Channels of the first convolution."""
        dropout: Fraction = 0.0

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__()
        width = config.width
        self.features = nn.Sequential(
            nn.Conv2d(data.input_shape[0], width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(2 * width, data.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [b, channels, height, width] to logits [b, classes]."""
        logits: Tensor = self.head(self.dropout(self.features(images)))
        return logits


class Linear(nn.Module):
    """Multinomial regression; without a `Config` of its own a job may give it no keys but `name`."""

    def __init__(self, config: ModelConfig, data: DataSpec) -> None:
        super().__init__()
        num_inputs = int(torch.tensor(data.input_shape).prod())
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(num_inputs, data.num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Images to logits."""
        logits: Tensor = self.layers(images)
        return logits
