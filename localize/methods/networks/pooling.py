"""Pooling of images, volumes or tokens to one vector for each sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from passes.errors import MethodError
from passes.ir import TensorSpec

Pooling = Literal["average", "token", "attention"]
"""The mean over positions; the first token; or a mean weighted by a learned query."""
POOLINGS: tuple[Pooling, ...] = ("average", "token", "attention")

_POSITIONS = {"NCHW": (2, 3), "NHWC": (1, 2), "NCDHW": (2, 3, 4), "NLC": (1,), "NC": ()}


class GlobalAveragePool(nn.Module):
    """Mean over all positions of images or tokens: (N, C, H, W), (N, H, W, C) or (N, T, C) -> (N, C)."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.dims = tuple(dims)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the average over the position dimensions."""
        result: torch.Tensor = _Mean.apply(x, self.dims)
        return result

    def extra_repr(self) -> str:
        """Return the dimensions averaged over."""
        return f"dims={self.dims}"


class _Mean(torch.autograd.Function):
    """The mean, whose gradient takes no memory: one value for all positions, not one for each."""

    # Torch's own gradient is a full map, which at the first local module would be the peak of memory.

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
        ctx.shape = x.shape
        ctx.pooled = [1 if dim in dims else size for dim, size in enumerate(x.shape)]
        return x.mean(dims)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        positions = ctx.shape.numel() // math.prod(ctx.pooled)
        return (gradient / positions).view(ctx.pooled).expand(ctx.shape), None


class FirstToken(nn.Module):
    """The class token (Dosovitskiy et al., ICLR 2021, section 3.1): (N, T, C) -> (N, C)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the first token."""
        return x[:, 0]


class AttentionPool(nn.Module):
    """Attention of one learned query to all positions: (N, C, H, W), (N, H, W, C) or (N, T, C) -> (N, C).

    Lee et al.: "Set Transformer", ICML 2019, section 3.2 (pooling by multihead attention), with one seed vector, one
    head and no projections: sum over t of softmax(q x_t / sqrt(C)) x_t. The query starts as zero, which is the average.
    """

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__()
        self.channel_dim, self.positions = spec.channel_dim, positions_of(spec)
        self.query = nn.Parameter(torch.zeros(1, spec.channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the weighted mean."""
        tokens = x.movedim(self.channel_dim, -1).flatten(1, -2)
        weights = F.linear(tokens, self.query / math.sqrt(tokens.shape[-1])).softmax(1)
        return (weights.transpose(1, 2) @ tokens).squeeze(1)

    def extra_repr(self) -> str:
        """Return the number of channels."""
        return f"{self.query.shape[1]}"


def positions_of(spec: TensorSpec) -> tuple[int, ...]:
    """Return the dimensions of a value that are positions.

    Raises:
        MethodError: The layout of ``spec`` is unknown.
    """
    if spec.layout not in _POSITIONS:
        raise MethodError(f"a value of shape {spec} cannot be pooled for a local loss", remedy="Use method='bp'")
    return _POSITIONS[spec.layout]


def build_pool(spec: TensorSpec, pool: Pooling) -> nn.Module | None:
    """Build the pooling layer; return None for features without positions.

    Raises:
        MethodError: The layout of ``spec`` is unknown.
    """
    dims = positions_of(spec)
    if not dims:
        return None
    if pool == "token":
        assert spec.layout == "NLC", f"{spec} has no tokens"
        return FirstToken()
    return AttentionPool(spec) if pool == "attention" else GlobalAveragePool(dims)


def pool_cost(spec: TensorSpec, pool: Pooling) -> tuple[int, int]:
    """Return parameters and multiply-accumulates of :func:`build_pool`; products of activations are not counted."""
    if pool != "attention" or not positions_of(spec):
        return 0, 0
    return spec.channels, spec.channels * math.prod(spec.spatial)


def describe_pool(spec: TensorSpec, pool: Pooling) -> list[str]:
    """Describe the pooling layer in words; return an empty list for features without positions.

    >>> import torch
    >>> describe_pool(TensorSpec((1, 64, 8, 8), torch.float32, "NCHW"), "average")
    ['pool']
    """
    words = {"average": "pool", "token": "first_token", "attention": "attention_pool"}
    return [words[pool]] if positions_of(spec) else []
