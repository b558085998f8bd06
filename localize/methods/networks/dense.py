"""Parts of dense heads: the grid of positions in features, and its interpolation to another resolution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from localize.plan.prediction import Prediction
from passes.common.initializer import Initializer, bare
from passes.errors import MethodError
from passes.ir import Layout, TensorSpec

_MOST_PREFIX = 8
"""The most tokens before those of the patches: a class token, a distillation token, registers."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Positions of a value, in the order of an image's positions."""

    layout: Layout
    size: tuple[int, ...]
    prefix: int = 0
    """Number of tokens before those of the grid; they have no position."""

    @property
    def plain(self) -> bool:
        """True where the value is an image, or a volume, with channels first already."""
        return self.layout in ("NCHW", "NCDHW")


def grid_of(spec: TensorSpec, prediction: Prediction) -> Grid:
    """Return the positions in a value, as a grid of the map's proportions.

    Tokens are taken for patches if a grid in the output's proportions has just as many positions, or up to 8 fewer: the
    remaining tokens stand before the patches, as class tokens and registers do. Features without positions are a grid
    of one position.

    Raises:
        MethodError: ``spec`` holds no grid of as many dimensions as the map has.
    """
    rank = len(prediction.size)
    if spec.layout == "NC":
        return Grid("NC", (1,) * rank)
    if spec.layout == "NLC":
        count = spec.shape[1]
        sides = _sides(prediction.size, count)
        if sides is not None:
            return Grid("NLC", sides, count - math.prod(sides))
    elif spec.layout in ("NCHW", "NHWC", "NCDHW") and len(spec.spatial) == rank:
        return Grid(spec.layout, spec.spatial)
    raise MethodError(
        f"a value of shape {spec} ({spec.layout}) cannot be turned into a map of {prediction}",
        why="its positions are not those of a grid of the output's shape",
        remedy="Use another granularity=, whose layers end in images or tokens of patches, or method='bp'",
    )


def grid_of_features(spec: TensorSpec, image: tuple[int, ...]) -> Grid:
    """Return the positions in a value as those of an image, whatever the network predicts.

    Tokens are taken for the patches of an image in the input's proportions, as in :func:`grid_of`; else for the
    positions of a square; else for one column.

    Args:
        spec: Form of the features.
        image: Height and width of the network's input; empty if the input is not an image.

    Raises:
        MethodError: ``spec`` is a volume, or its layout is unknown.
    """
    if spec.layout == "NC":
        return Grid("NC", (1, 1))
    if spec.layout == "NLC":
        count = spec.shape[1]
        side = math.isqrt(count)
        sides = _sides(image, count) if len(image) == 2 else None
        sides = sides or ((side, side) if side * side == count else (count, 1))
        return Grid("NLC", sides, count - math.prod(sides))
    if spec.layout not in ("NCHW", "NHWC"):
        raise MethodError(
            f"a value of shape {spec} ({spec.layout}) must be an image, tokens or features without positions",
            remedy="Use another granularity=, whose layers end in one of these, or method='auglocal' or 'bp'",
        )
    return Grid(spec.layout, spec.spatial)


def _sides(size: tuple[int, ...], count: int) -> tuple[int, ...] | None:
    """Return the finest grid in the proportions of ``size`` that ``count`` tokens may hold; None if none fits."""
    for patch in range(1, math.gcd(*size) + 1):
        if all(side % patch == 0 for side in size):
            sides = tuple(side // patch for side in size)
            if 0 <= count - math.prod(sides) <= min(_MOST_PREFIX, math.prod(sides)):
                return sides
    return None


def resampling(rank: int) -> str:
    """Return the mode of interpolation that is linear in ``rank`` dimensions."""
    return {1: "linear", 2: "bilinear", 3: "trilinear"}[rank]


class ToGrid(nn.Module):
    """Rearrange to an image: (N, H, W, C), (N, T, C) or (N, C) -> (N, C, *size).

    Args:
        grid: Positions of the image in the value.
        added: Whether the mean of the tokens without position is added to all others (Ranftl et al.: "Vision
            Transformers for Dense Prediction", ICCV 2021, section 3.1, "add"); else these tokens are left out.
    """

    def __init__(self, grid: Grid, added: bool = False) -> None:
        super().__init__()
        self.grid = grid
        self.added = added

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the image."""
        if self.grid.layout == "NC":
            return x.reshape(*x.shape, *self.grid.size)
        if self.grid.layout == "NHWC":
            return x.permute(0, 3, 1, 2)
        positions = x[:, self.grid.prefix :]
        if self.added and self.grid.prefix:
            positions = positions + x[:, : self.grid.prefix].mean(1, keepdim=True)
        return positions.transpose(1, 2).reshape(x.shape[0], x.shape[2], *self.grid.size)

    def extra_repr(self) -> str:
        """Return the grid."""
        how = "added" if self.added else "left out"
        without = f", {self.grid.prefix} in front {how}" if self.grid.prefix else ""
        return f"{self.grid.layout} to {'x'.join(map(str, self.grid.size))}{without}"


class Resize(nn.Module):
    """Interpolate (N, C, ...) to another resolution, bilinearly (volumes: trilinearly)."""

    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the same map at the new resolution."""
        resized: torch.Tensor = F.interpolate(x, list(self.size), mode=resampling(len(self.size)), align_corners=False)
        return resized

    def extra_repr(self) -> str:
        """Return the resolution."""
        return "x".join(map(str, self.size))


def pointwise_(convolution: nn.Module, draw: Initializer) -> nn.Module:
    """Draw the weights of a 1x1 convolution as those of a linear layer, which it is at each position."""
    assert isinstance(convolution, (nn.Conv2d, nn.Conv3d))
    linear = draw.plain_(bare(nn.Linear, convolution.in_channels, convolution.out_channels))
    assert isinstance(linear, nn.Linear)
    convolution.weight = nn.Parameter(linear.weight.detach().view(convolution.weight.shape))
    convolution.bias = nn.Parameter(linear.bias.detach())
    return convolution
