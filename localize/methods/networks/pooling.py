"""How a head makes one vector a sample of images, volumes or tokens."""

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
"""The mean over positions; the first token; or a weighted mean, by a learned query."""
POOLINGS: tuple[Pooling, ...] = ("average", "token", "attention")

_POSITIONS = {"NCHW": (2, 3), "NHWC": (1, 2), "NCDHW": (2, 3, 4), "NLC": (1,), "NC": ()}


class GlobalAveragePool(nn.Module):
    """Mean over all positions of images or tokens: (N, C, H, W), (N, H, W, C) or (N, T, C) -> (N, C)."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.dims = tuple(dims)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Averages over the position dimensions."""
        result: torch.Tensor = _Mean.apply(x, self.dims)
        return result

    def extra_repr(self) -> str:
        """The dimensions averaged over."""
        return f"dims={self.dims}"


class _Mean(torch.autograd.Function):
    """The mean, whose gradient takes no memory: one value for all positions, not one for each."""

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
        """The first of the tokens."""
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
        """The weighted mean."""
        tokens = x.movedim(self.channel_dim, -1).flatten(1, -2)
        weights = F.linear(tokens, self.query / math.sqrt(tokens.shape[-1])).softmax(1)
        return (weights.transpose(1, 2) @ tokens).squeeze(1)

    def extra_repr(self) -> str:
        """The number of channels."""
        return f"{self.query.shape[1]}"


def positions_of(spec: TensorSpec) -> tuple[int, ...]:
    """Dimensions of a value that are positions.

    Raises:
        MethodError: Its layout is not known.
    """
    if spec.layout not in _POSITIONS:
        raise MethodError(f"a value of shape {spec} cannot be pooled for a local loss", remedy="Use method='bp'")
    return _POSITIONS[spec.layout]


def build_pool(spec: TensorSpec, pool: Pooling) -> nn.Module | None:
    """The pooling layer; None for features without positions.

    Raises:
        MethodError: The layout of ``spec`` is not known.
    """
    dims = positions_of(spec)
    if not dims:
        return None
    if pool == "token":
        assert spec.layout == "NLC", f"{spec} has no tokens"
        return FirstToken()
    return AttentionPool(spec) if pool == "attention" else GlobalAveragePool(dims)


def pool_cost(spec: TensorSpec, pool: Pooling) -> tuple[int, int]:
    """Parameters and multiply-accumulates of :func:`build_pool`; as everywhere, those between activations left out."""
    if pool != "attention" or not positions_of(spec):
        return 0, 0
    return spec.channels, spec.channels * math.prod(spec.spatial)


def describe_pool(spec: TensorSpec, pool: Pooling) -> list[str]:
    """The pooling layer in words; nothing for features without positions."""
    words = {"average": "pool", "token": "first_token", "attention": "attention_pool"}
    return [words[pool]] if positions_of(spec) else []
