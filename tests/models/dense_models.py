"""Small networks that predict a map: U-shaped, of windows of tokens, channels last, volumes, a feature pyramid."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

CLASSES = 4


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class UNet(nn.Module):
    """Three resolutions down and up again; transposed convolutions, or interpolation, in the decoder."""

    def __init__(self, transposed: bool, width: int = 4, classes: int = CLASSES) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width)
        self.down = nn.ModuleList(
            nn.Sequential(conv(a, b), conv(b, b)) for a, b in zip((3, *widths), widths, strict=False)
        )
        self.middle = conv(widths[2], widths[2])
        self.raise_ = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 2, 2) if transposed else nn.Conv2d(a, b, 1)
            for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.up = nn.ModuleList(nn.Sequential(conv(2 * b, b), conv(b, b)) for b in widths[-2::-1])
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for block in self.down[:-1]:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.middle(self.down[-1](x))
        for raised, block in zip(self.raise_, self.up, strict=True):
            skip = skips.pop()
            x = raised(x)
            if x.shape[-1] != skip.shape[-1]:
                x = F.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([skip, x], 1))
        result: torch.Tensor = self.classifier(x)
        return result


class Segmenter(nn.Module):
    """Patches of 4x4 pixels as tokens, a class token before them, and a linear decoder (Strudel et al., ICCV 2021)."""

    def __init__(self, size: tuple[int, int], dim: int = 8) -> None:
        super().__init__()
        self.grid = size[0] // 4, size[1] // 4
        self.patches = nn.Conv2d(3, dim, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, 2, 2 * dim, dropout=0.0, batch_first=True) for _ in range(3)
        )
        self.decoder = nn.Linear(dim, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        maps = self.decoder(tokens[:, 1:]).transpose(1, 2).reshape(x.shape[0], CLASSES, *self.grid)
        return F.interpolate(maps, scale_factor=4.0, mode="bilinear", align_corners=False)


class ChannelsLast(nn.Module):
    """Linear layers over (N, H, W, C), which is also how it returns its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU()) for _ in range(3))
        self.classifier = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        for layer in self.layers:
            x = layer(x)
        result: torch.Tensor = self.classifier(x)
        return result


class Volumes(nn.Module):
    """Volumes in, a map of logits over volumes out."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 4, 6, 6)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv3d(a, b, 3, s, 1), nn.BatchNorm3d(b), nn.ReLU())
            for a, b, s in zip(widths, widths[1:], (1, 2, 1), strict=False)
        )
        self.classifier = nn.Conv3d(6, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[2:]
        for layer in self.layers:
            x = layer(x)
        return F.interpolate(self.classifier(x), size=size, mode="trilinear", align_corners=False)


class Pyramid(nn.Module):
    """A backbone of three stages with a feature pyramid (Lin et al., CVPR 2017), in the order fine to coarse."""

    def __init__(self, wrapped: bool = False) -> None:
        super().__init__()
        widths = (8, 12, 16)
        self.stages = nn.ModuleList(
            nn.Sequential(conv(a, b, 2), conv(b, b)) for a, b in zip((3, *widths), widths, strict=False)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(b, 6, 1) for b in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in widths)
        self.wrapped = wrapped

    def forward(self, x: torch.Tensor) -> Any:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        top = self.lateral[-1](features[-1])
        levels = [self.smooth[-1](top)]
        for i in (1, 0):
            top = self.lateral[i](features[i]) + F.interpolate(top, size=features[i].shape[2:])
            levels.insert(0, self.smooth[i](top))
        return {"levels": levels, "names": "fine to coarse"} if self.wrapped else dict(enumerate(levels))
