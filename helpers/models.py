"""The course's one small network."""

import torch
from torch import nn


def conv_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """3x3 convolution, BatchNorm, ReLU, and half the height and width."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


class SmallCNN(nn.Module):
    """Three convolution blocks and a linear head, for images of any size from 32x32.

    Input (B, 3, H, W), output (B, num_classes): logits. The last block's features,
    pooled to 4x4, are 1,024 numbers an image.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.layer1 = conv_block(3, 16)
        self.layer2 = conv_block(16, 32)
        self.layer3 = conv_block(32, 64)
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(64 * 4 * 4, num_classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What the head sees: (B, 3, H, W) -> (B, 1024)."""
        x = self.layer1(x)  # (B, 16, H/2, W/2)
        x = self.layer2(x)  # (B, 32, H/4, W/4)
        x = self.layer3(x)  # (B, 64, H/8, W/8)
        return self.pool(x).flatten(1)  # (B, 64, 4, 4) -> (B, 1024)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.features(x)))
