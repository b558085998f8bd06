"""Plain blocks: convolution + norm + ReLU, or linear + norm + ReLU where channels come last.

The handcrafted auxiliary networks that AugLocal (ICLR 2024, section 4.5, table 5) compares its own with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from passes.common.initializer import Initializer, bare
from passes.ir import TensorSpec

Kind = Literal["conv1x1", "conv3x3", "linear"]

_CONVOLUTIONS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "NCHW": (nn.Conv2d, nn.BatchNorm2d),
    "NCDHW": (nn.Conv3d, nn.BatchNorm3d),
}


@dataclass(frozen=True, slots=True)
class Plain:
    """One plain block."""

    kind: Kind
    input: TensorSpec
    out_channels: int
    stride: int
    """Downsampling of the block: a 3x3 convolution by its stride, a 1x1 convolution by average pooling before it."""

    @property
    def kernel(self) -> int:
        """Number of positions that one output reads."""
        return 3 ** len(self.input.spatial) if self.kind == "conv3x3" else 1

    @property
    def output(self) -> TensorSpec:
        """Spec of the block's output."""
        shape = list(self.input.shape)
        shape[self.input.channel_dim] = self.out_channels
        if self.kind != "linear":
            shape[2:] = [math.ceil(size / self.stride) for size in shape[2:]]
        return replace(self.input, shape=tuple(shape))

    @property
    def params(self) -> int:
        """Number of parameter elements, the norm's included."""
        return (self.kernel * self.input.channels + 2) * self.out_channels

    @property
    def macs(self) -> int:
        """Multiply-accumulates at batch 1."""
        return self.kernel * self.input.channels * self.out_channels * math.prod(self.output.spatial)


def kind_for(kind: Kind, spec: TensorSpec) -> Kind:
    """Return ``kind`` where a convolution can read the value; else ``"linear"``: channels last, or no positions."""
    return kind if spec.layout in _CONVOLUTIONS else "linear"


def stack(kind: Kind, spec: TensorSpec, strides: Sequence[int], channels: int) -> list[Plain]:
    """Return blocks of ``channels`` output channels that read ``spec``, one for each stride; linear ones ignore it."""
    kind = kind_for(kind, spec)
    blocks: list[Plain] = []
    for stride in strides:
        blocks.append(Plain(kind, spec, channels, 1 if kind == "linear" else stride))
        spec = blocks[-1].output
    return blocks


def nearest_width(cost: Callable[[int], int], target: int) -> int:
    """Return the number of channels, at least 1, whose cost is nearest to ``target``; the smaller of two such numbers.

    Args:
        cost: Cost by number of channels, an increasing function.
        target: Cost to meet.

    >>> nearest_width(lambda channels: 10 * channels, 34)
    3
    """
    high = 1
    while cost(high) < target:
        high *= 2
    low = high // 2
    while high - low > 1:  # cost(low) < target <= cost(high)
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) < target else (low, middle)
    return low if low and target - cost(low) <= cost(high) - target else high


def build_plain(block: Plain, draw: Initializer) -> nn.Sequential:
    """Build the block with fresh weights."""
    inputs, outputs, stride = block.input.channels, block.out_channels, block.stride
    network = nn.Sequential()
    if block.kind == "linear":
        network.add_module("linear", draw.plain_(bare(nn.Linear, inputs, outputs, bias=False)))
        network.add_module("norm", nn.BatchNorm1d(outputs) if block.input.layout == "NC" else nn.LayerNorm(outputs))
    else:
        convolution, norm = _CONVOLUTIONS[block.input.layout]
        size = 3 if block.kind == "conv3x3" else 1
        strided = stride if size > 1 else 1
        if stride > strided:
            # A strided 1x1 convolution would ignore all but one value of each window.
            network.add_module("pool", nn.AvgPool2d(stride, ceil_mode=True))
        layer = bare(convolution, inputs, outputs, size, strided, size // 2, bias=False)
        network.add_module("convolution", draw.plain_(layer))
        network.add_module("norm", norm(outputs))
    network.add_module("relu", nn.ReLU())
    return network
