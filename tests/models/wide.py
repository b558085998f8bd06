"""Networks that only cuts of several tensors divide: a U-shape, two branches, dense connections."""

from __future__ import annotations

import timm
import torch
from torch import nn
from torch.nn import functional as F

CLASSES = 5


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class UNet(nn.Module):
    """Three resolutions, a skip at each, and a classifier on top: the skip of the first crosses everything."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([conv(3, 8), conv(8, 16, 2), conv(16, 32, 2)])
        self.middle = conv(32, 32)
        self.up = nn.ModuleList([conv(32 + 32, 16), conv(16 + 16, 8), conv(8 + 8, 8)])
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        x = self.middle(x)
        for block in self.up:
            skip = skips.pop()
            x = block(torch.cat([F.interpolate(x, size=skip.shape[2:]), skip], 1))
        logits: torch.Tensor = self.head(x.mean((2, 3)))
        return logits


class TwoWays(nn.Module):
    """Two branches of different width and resolution that never meet before the end."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.ModuleList([conv(3, 8), conv(8, 8), conv(8, 8)])
        self.coarse = nn.ModuleList([conv(3, 6, 2), conv(6, 6), conv(6, 6)])
        self.tokens = nn.Linear(6, 7)
        self.head = nn.Linear(8 + 7, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x, x
        for fine, coarse in zip(self.fine, self.coarse, strict=True):
            a, b = fine(a), coarse(b)
        tokens = self.tokens(b.flatten(2).transpose(1, 2))
        logits: torch.Tensor = self.head(torch.cat([a.mean((2, 3)), tokens.mean(1)], 1))
        return logits


EXAMPLE = torch.empty(2, 3, 16, 16)


def small_densenet() -> nn.Module:
    return timm.create_model("densenet121", num_classes=CLASSES, block_config=(2, 3), growth_rate=8)


MAKERS = {"u-net": UNet, "two ways": TwoWays, "densenet": small_densenet}
