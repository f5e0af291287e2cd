"""Residual nets for small images: 6n + 2 layers of 16, 32 and 64 channels.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2, with
parameter-free shortcuts (option A). With group normalisation (Y. Wu, K. He, "Group Normalization", ECCV 2018) the
output for a sample does not depend on the rest of the batch: BatchNorm fails if each client has few labels (K. Hsieh et
al., "The Non-IID Data Quagmire of Decentralized Machine Learning", ICML 2020, section 5).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

Norm = Callable[[int], nn.Module]
"""Maps a number of channels to a normalisation."""
GROUP_CHANNELS = 8
"""Channels of a group."""


def group_norm(channels: int) -> nn.Module:
    """Group normalisation with groups of eight channels."""
    return nn.GroupNorm(channels // GROUP_CHANNELS, channels)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters."""

    def __init__(self, channels_in: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = norm(channels)
        self.stride = stride
        self.new_channels = channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        """[b, c_in, h, w] -> [b, c, h / stride, w / stride]."""
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels))
        return functional.relu(out + shortcut)


class ResNetCifar(nn.Module):
    """Three stages of `blocks_per_stage` = n blocks each."""

    def __init__(self, blocks_per_stage: int, num_classes: int, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = norm(16)
        blocks: list[nn.Module] = []
        channels_in = 16
        for channels in (16, 32, 64):
            for index in range(blocks_per_stage):
                stride = 2 if index == 0 and channels > 16 else 1
                blocks.append(Block(channels_in, channels, stride, norm))
                channels_in = channels
        self.stages = nn.Sequential(*blocks)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images [b, 3, h, w] -> class scores [b, num_classes]."""
        out = functional.relu(self.bn1(self.conv1(x)))
        scores: Tensor = self.fc(self.stages(out).mean(dim=(2, 3)))
        return scores
