"""Resolution: how a network halves it, and how many halvings an auxiliary network owes."""

from __future__ import annotations

import math
from collections import Counter
from typing import Literal

from torch import nn

from passes.ir import Network, TensorSpec

Downsampling = Literal["stride", "max_pool", "avg_pool"]
"""How a primary network halves its resolution."""


def reduction(before: TensorSpec, after: TensorSpec) -> int:
    """By which power of two resolution shrinks from one value to another; 1 where resolution has no meaning."""
    return int(2 ** max(0, _halvings(before, after)))


def grid(spec: TensorSpec) -> tuple[int, ...]:
    """Height and width of an image, or of the square image whose pixels tokens are; empty where neither is the case."""
    if spec.layout != "NLC":
        return spec.spatial if len(spec.spatial) == 2 else ()
    side = math.isqrt(spec.shape[1])
    return (side, side) if side * side == spec.shape[1] else ()


def _halvings(before: TensorSpec, after: TensorSpec) -> int:
    sizes = list(zip(grid(before), grid(after), strict=False))
    if not sizes or not all(b and a for b, a in sizes):
        return 0
    return round(math.log2(max(b / a for b, a in sizes)))


def owed_halvings(now: TensorSpec, primary: TensorSpec) -> int:
    """Halvings between an auxiliary network's present resolution and the primary's after the layer about to be copied.

    AugLocal (ICLR 2024), section 3.2, downsamples when the width doubles; on ResNets, where width doubles as resolution
    halves, that is the same. A block performs one halving at most, so what it leaves is owed by the blocks after it.
    """
    return max(0, _halvings(now, primary))


def downsampling_of(network: Network) -> Downsampling:
    """How most layers that halve resolution do it, the stem left out: by stride, or by a pooling layer."""
    found: Counter[Downsampling] = Counter()
    for layer in network.layers[1:]:
        if reduction(layer.input, layer.output) > 1:
            found[_downsampling_in(network, layer.index)] += 1
    return found.most_common(1)[0][0] if found else "stride"


def _downsampling_in(network: Network, index: int) -> Downsampling:
    pool: Downsampling | None = None
    for name in network.partition.nodes[index]:
        module = network.captured.module(network.captured.by_name[name])
        if module is None:
            continue
        strided = module.stride if isinstance(module, nn.Conv2d) else 1
        if strided not in (1, (1, 1)):
            return "stride"
        if isinstance(module, nn.MaxPool2d):
            pool = "max_pool"
        elif isinstance(module, nn.AvgPool2d):
            pool = pool or "avg_pool"
    return pool or "stride"
