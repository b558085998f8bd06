"""ResNets for CIFAR: He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), section 4.2.

A 3x3 convolution, three stages of n blocks at widths 16, 32 and 64 whose later two begin with a stride of 2, global
average pool, linear: depth 6n + 2. Shortcuts are projections where a block changes the shape (the paper's option B; its
own CIFAR networks pad with zeros, option A), as in the networks that AugLocal (ICLR 2024) reports on. Convolutions are
initialized as in AugLocal's appendix A.2. Modules have torchvision's names.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from passes.errors import LocalizeError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        # In place throughout: batch norm and the addition keep nothing of their outputs for the backward pass.
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return residual function plus shortcut."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        result: torch.Tensor = self.relu(out)
        return result


class CifarResNet(nn.Module):
    """ResNet for small images: (N, in_channels, H, W) -> (N, num_classes).

    Height and width may be any number of pixels from 8 on; 32 is what the network was made for, and what
    ``pretrained_cfg`` (timm's convention) says. Build one with :func:`cifar_resnet`.
    """

    def __init__(self, blocks: int, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        self.pretrained_cfg = {"input_size": (in_channels, 32, 32), "num_classes": num_classes}
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(width, width, 1, blocks)
        self.layer2 = _stage(width, 2 * width, 2, blocks)
        self.layer3 = _stage(2 * width, 4 * width, 2, blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch of images, (N, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: torch.Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def _stage(in_channels: int, out_channels: int, stride: int, blocks: int) -> nn.Sequential:
    later = (BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(in_channels, out_channels, stride), *later)


def cifar_resnet(depth: int, num_classes: int = 10, in_channels: int = 3, width: int = 16) -> CifarResNet:
    """Build a CIFAR ResNet with new random weights.

    >>> sum(p.numel() for p in cifar_resnet(20).parameters())
    272474

    Args:
        depth: Layers with weights, shortcuts not counted: 6n + 2, so 8, 14, 20, 32, 44, 56, 110, ...
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        width: Channels of the first stage; the others have twice and four times as many.

    Returns:
        A module from (N, in_channels, H, W) to logits (N, num_classes). With the defaults, depth 32 has 466,906
        parameters and depth 110 has 1,730,714.

    Raises:
        LocalizeError: ``depth`` is not 6n + 2, or another argument is less than 1.
    """
    if depth < 8 or depth % 6 != 2:
        raise LocalizeError(f"depth must be 6n + 2, got {depth}", remedy="Take 8, 14, 20, 32, 44, 56, 110, ...")
    for name, value in (("num_classes", num_classes), ("in_channels", in_channels), ("width", width)):
        if value < 1:
            raise LocalizeError(f"{name} must be at least 1, got {value}")
    return CifarResNet((depth - 2) // 6, num_classes, in_channels, width)
