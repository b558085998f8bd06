"""Modules that a recipe adds to the copy of a layer: projections of its shortcuts, and an adapter in front of it.

An adapter changes, in this order, channels (1x1 convolution or linear layer, and norm), resolution (2x2 pooling) and
layout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from passes.common.initializer import Initializer, bare
from passes.errors import AdaptError
from passes.ir import Layout

Downsampling = Literal["stride", "max_pool", "avg_pool"]
"""The operation by which a network halves its resolution."""

GRIDS: tuple[Layout, ...] = ("NCHW", "NHWC", "NLC")
"""Layouts of images. Tokens are taken to be the pixels of a square image, row by row."""


@dataclass(frozen=True, slots=True)
class Projection:
    """A 1x1 convolution (or linear layer) and norm on one operand of a join."""

    in_channels: int
    out_channels: int
    stride: int
    layout: Layout


@dataclass(frozen=True, slots=True)
class Front:
    """An adapter in front of a block: it changes channels, then resolution, then layout."""

    in_channels: int
    out_channels: int
    pool: Downsampling | None
    layout: Layout
    """Layout of the value that the adapter reads."""
    factor: int = 2
    """Size of the pooling windows, and their stride."""
    to: Layout | None = None
    """Layout of the result; None for the same as ``layout``."""

    @property
    def is_empty(self) -> bool:
        """True if the adapter changes nothing."""
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
    """Build a 1x1 convolution and batch norm for images, or a linear layer and layer norm where channels come last.

    A stride leaves out pixels before the linear layer: a strided 1x1 convolution does the same.

    Raises:
        AdaptError: The values are volumes, or they are to be strided and are not images.
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
    """Build the part of an adapter that changes channels and resolution; :class:`ToLayout` changes the layout.

    Raises:
        AdaptError: ``front`` has a pooling, and its layout is not one of :data:`GRIDS`.
    """
    parts: list[nn.Module] = []
    if front.in_channels != front.out_channels:
        parts.append(build_projection(Projection(front.in_channels, front.out_channels, 1, front.layout), draw))
    if front.pool:
        if front.layout not in GRIDS:
            raise AdaptError(f"values in {front.layout} cannot be pooled")
        # Odd sizes round up, as after a strided 3x3 convolution.
        kind = nn.MaxPool2d if front.pool == "max_pool" else nn.AvgPool2d
        pool = kind(front.factor, ceil_mode=True)
        parts.append(pool if front.layout == "NCHW" else Pooled(pool, front.layout))
    return nn.Sequential(*parts)


class Strided(nn.Module):
    """Every ``stride``-th pixel of an image with its channels last: (N, H, W, C) -> (N, H/s, W/s, C)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Leave out pixels."""
        return x[:, :: self.stride, :: self.stride]

    def extra_repr(self) -> str:
        """Return the stride as text."""
        return f"stride={self.stride}"


class Pooled(nn.Module):
    """A pooling layer over images with their channels last, or over tokens."""

    def __init__(self, pool: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.pool = pool
        self.layout = layout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pool values of shape (N, H, W, C) or (N, T, C); the result has fewer positions and the same layout."""
        return from_image(self.pool(to_image(x, self.layout)), self.layout)

    def extra_repr(self) -> str:
        """Return the layout as text."""
        return f"layout={self.layout}"


class ToLayout(nn.Module):
    """A change of layout that keeps all values."""

    def __init__(self, source: Layout, target: Layout) -> None:
        super().__init__()
        self.source, self.target = source, target

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the values of ``x`` in the target layout, contiguous in memory."""
        return from_image(to_image(x, self.source), self.target).contiguous()

    def extra_repr(self) -> str:
        """Return both layouts as text."""
        return f"{self.source} -> {self.target}"


def to_image(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Return an image of shape (N, C, H, W) that shares the memory of ``x`` where it can.

    Raises:
        ValueError: ``layout`` is not one of :data:`GRIDS`, or the number of tokens is not a square number.

    >>> to_image(torch.zeros(2, 16, 3), "NLC").shape
    torch.Size([2, 3, 4, 4])
    """
    if layout == "NCHW":
        return x
    if layout == "NHWC":
        return x.permute(0, 3, 1, 2)
    side = math.isqrt(x.shape[1]) if layout == "NLC" else 0
    if not side or side * side != x.shape[1]:
        raise ValueError(f"values in {layout} of shape {tuple(x.shape[1:])} do not form a square image")
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], side, side)


def from_image(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Return an image of shape (N, C, H, W) in a layout of :data:`GRIDS`.

    Raises:
        ValueError: ``layout`` is not one of :data:`GRIDS`.
    """
    if layout == "NCHW":
        return x
    if layout == "NHWC":
        return x.permute(0, 2, 3, 1)
    if layout == "NLC":
        return x.flatten(2).transpose(1, 2)
    raise ValueError(f"an image cannot be laid out as {layout}")
