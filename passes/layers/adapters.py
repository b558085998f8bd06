"""Modules that a recipe adds to a layer: projections of shortcuts, and what stands in front of a copy.

In front stand, in this order: channels (1x1 convolution or linear layer, and norm), resolution (2x2 pooling), layout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from passes.common.initializer import Initializer, bare
from passes.errors import AdaptError
from passes.ir import Layout

Downsampling = Literal["stride", "max_pool", "avg_pool"]
"""How a network halves its resolution."""

GRIDS: tuple[Layout, ...] = ("NCHW", "NHWC", "NLC")
"""Layouts of images; of tokens it is assumed that they are a square one's pixels, row by row."""


@dataclass(frozen=True, slots=True)
class Projection:
    """A 1x1 convolution (or linear layer) and norm on one operand of a join."""

    in_channels: int
    out_channels: int
    stride: int
    layout: Layout


@dataclass(frozen=True, slots=True)
class Front:
    """What stands in front of a block: channels first, then resolution, then layout."""

    in_channels: int
    out_channels: int
    pool: Downsampling | None
    layout: Layout
    """Of what it reads."""
    factor: int = 2
    """By how much it pools."""
    to: Layout | None = None
    """The layout it gives; None for the same."""

    @property
    def is_empty(self) -> bool:
        """Whether it does nothing."""
        return self.pool is None and self.in_channels == self.out_channels and self.to is None

    def __str__(self) -> str:
        parts = []
        if self.in_channels != self.out_channels:
            parts.append("conv1x1+norm" if self.layout == "NCHW" else "linear+norm")
        if self.pool:
            parts.append(f"{self.pool} {self.factor}x{self.factor}")
        if self.to:
            parts.append(f"as {self.to}")
        return " > ".join(parts) or "unchanged copy"


def build_projection(projection: Projection, draw: Initializer) -> nn.Module:
    """1x1 convolution + batch norm for images, linear + layer norm for what has its channels last.

    A stride is taken before the linear layer, which a convolution of one pixel does as well.

    Raises:
        AdaptError: Tokens cannot be strided, and volumes not projected.
    """
    inputs, outputs, stride = projection.in_channels, projection.out_channels, projection.stride
    if projection.layout == "NCHW":
        convolution = bare(nn.Conv2d, inputs, outputs, 1, stride, bias=False)
        return draw.plain_(nn.Sequential(convolution, nn.BatchNorm2d(outputs)))
    if projection.layout == "NCDHW":
        raise AdaptError("a shortcut of volumes cannot be projected")
    if stride > 1 and projection.layout != "NHWC":
        raise AdaptError(f"a shortcut in {projection.layout} cannot be strided")
    parts: list[nn.Module] = [Strided(stride)] if stride > 1 else []
    parts += [bare(nn.Linear, inputs, outputs, bias=False), nn.LayerNorm(outputs)]
    return draw.plain_(nn.Sequential(*parts))


def build_front(front: Front, draw: Initializer) -> nn.Module:
    """Channels and resolution; the layout is :class:`ToLayout`'s.

    Raises:
        AdaptError: Values of this layout cannot be pooled.
    """
    parts: list[nn.Module] = []
    if front.in_channels != front.out_channels:
        parts.append(build_projection(Projection(front.in_channels, front.out_channels, 1, front.layout), draw))
    if front.pool:
        if front.layout not in GRIDS:
            raise AdaptError(f"values in {front.layout} cannot be pooled")
        # Odd sizes round up, as behind a strided 3x3 convolution.
        kinds: dict[Any, type[nn.Module]] = {"max_pool": nn.MaxPool2d, "avg_pool": nn.AvgPool2d}
        pool = kinds[front.pool](front.factor, ceil_mode=True)
        parts.append(pool if front.layout == "NCHW" else Pooled(pool, front.layout))
    return nn.Sequential(*parts)


class Strided(nn.Module):
    """Every ``stride``-th pixel of an image with its channels last: (N, H, W, C) -> (N, H/s, W/s, C)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Leaves out pixels."""
        return x[:, :: self.stride, :: self.stride]

    def extra_repr(self) -> str:
        """The stride."""
        return f"stride={self.stride}"


class Pooled(nn.Module):
    """A pooling layer over images with their channels last, or over tokens."""

    def __init__(self, pool: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.pool = pool
        self.layout = layout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, H, W, C) or (N, T, C), with fewer positions in the same layout."""
        return from_image(self.pool(to_image(x, self.layout)), self.layout)

    def extra_repr(self) -> str:
        """The layout."""
        return f"layout={self.layout}"


class ToLayout(nn.Module):
    """The same values in another layout."""

    def __init__(self, source: Layout, target: Layout) -> None:
        super().__init__()
        self.source, self.target = source, target

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images with their channels first or last, or their pixels as tokens, made into another of the three."""
        return from_image(to_image(x, self.source), self.target).contiguous()

    def extra_repr(self) -> str:
        """Both layouts."""
        return f"{self.source} -> {self.target}"


def to_image(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """(N, C, H, W); tokens must be a square image's.

    Raises:
        ValueError: The number of tokens is no square, or the layout no image's.
    """
    if layout == "NCHW":
        return x
    if layout == "NHWC":
        return x.permute(0, 3, 1, 2)
    side = math.isqrt(x.shape[1]) if layout == "NLC" else 0
    if not side or side * side != x.shape[1]:
        raise ValueError(f"values in {layout} of shape {tuple(x.shape[1:])} are no square image")
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], side, side)


def from_image(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """From (N, C, H, W) to a layout of :data:`GRIDS`."""
    if layout == "NCHW":
        return x
    if layout == "NHWC":
        return x.permute(0, 2, 3, 1)
    if layout == "NLC":
        return x.flatten(2).transpose(1, 2)
    raise ValueError(f"an image has no form in {layout}")
