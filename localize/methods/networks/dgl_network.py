"""DGL's auxiliary network, MLP-SR-aux: 1x1 convolutions at a quarter of the resolution, then a multilayer perceptron.

Belilovsky, Eickenberg, Oyallon: "Decoupled Greedy Learning of CNNs", ICML 2020, with the figures that AugLocal (ICLR
2024) compares in appendix A.3 and table 6. Its linear layers read 4 C values, so two of them have 32 C^2 weights: 134
million for features of 2048 channels.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

from torch import nn

from localize.methods.networks.blocks import AuxiliaryBlocks
from localize.methods.networks.features import Features
from localize.methods.networks.linear import build_linear, describe_block
from localize.plan.records import Auxiliary
from passes.common.initializer import Initializer
from passes.ir import TensorSpec
from passes.layers.plain_blocks import Plain, build_plain

_REDUCTION = 4
"""Factor by which the first pooling lowers resolution."""
_POOLED = 2
"""Height and width of the image that the linear layers read."""


@dataclass(frozen=True, slots=True)
class DglNetwork:
    """Layers of DGL's auxiliary network; :func:`dgl_network` computes them."""

    features: Features
    size: tuple[int, ...]
    """Height and width of the image that the convolutions read; empty without positions."""
    convolutions: tuple[Plain, ...]
    pooled: tuple[int, ...]
    """Height and width of the image that the linear layers read; empty without positions."""
    hidden: tuple[Plain, ...]

    @property
    def blocks(self) -> tuple[Plain, ...]:
        """Hidden layers in order."""
        return (*self.convolutions, *self.hidden)

    @property
    def inputs(self) -> int:
        """Values that the classifier reads."""
        if self.hidden:
            return self.hidden[-1].out_channels
        return self.features.spec.channels * math.prod(self.pooled)

    def describe(self, outputs: int) -> Auxiliary:
        """Describe the network for the plan."""
        blocks, inputs = self.blocks, self.inputs
        pool = [f"pool({'x'.join(map(str, self.pooled))})"] if self.pooled and not blocks else []
        strides = zip(blocks, self._strides(), strict=True)
        return Auxiliary(
            selected=(),
            depth=len(blocks) + 1,
            params=sum(block.params for block in blocks) + (inputs + 1) * outputs,
            macs=sum(block.macs for block in blocks) + inputs * outputs,
            blocks=tuple(replace(describe_block(block), stride=stride) for block, stride in strides),
            head=" > ".join([*pool, f"linear({inputs}, {outputs})"]),
        )

    def build(self, outputs: int, draw: Initializer, like: nn.Module | None) -> nn.Sequential:
        """Build pooling, 1x1 convolutions, pooling and linear layers: from features to (N, outputs).

        Args:
            outputs: Logits of the classifier.
            draw: Source of weights.
            like: A layer whose initializer the classifier gets; None for torch's.
        """
        network = AuxiliaryBlocks()
        for part in self.features.build():
            network.add_module("grid", part)
        if self.convolutions:
            network.add_module("reduce", nn.AdaptiveAvgPool2d(_pair(self.size)))
        for position, block in enumerate(self.convolutions):
            network.add_module(f"convolution_{position}", build_plain(block, draw))
        if self.pooled:
            network.add_module("pool", nn.AdaptiveAvgPool2d(_pair(self.pooled)))
        network.add_module("flatten", nn.Flatten())
        for position, block in enumerate(self.hidden):
            network.add_module(f"hidden_{position}", build_plain(block, draw))
        network.add_module("classifier", build_linear(self.inputs, outputs, draw, like))
        return network

    def _strides(self) -> list[int]:
        """Return the pooling in front of each block as a stride: a power of two, rounded up where it is not one."""
        sides = [max(size, default=1) for size in (self.features.spec.spatial, self.size, self.pooled)]
        quarter, last = (2 ** math.ceil(math.log2(before / after)) for before, after in itertools.pairwise(sides))
        strides = [1] * len(self.blocks)
        if self.convolutions:
            strides[0] = quarter
        if self.hidden:
            strides[len(self.convolutions)] = last
        return strides


def dgl_network(
    features: Features, convolutions: int = 3, hidden: int = 2, hidden_width: int | None = None
) -> DglNetwork:
    """Compute the layers of DGL's auxiliary network after features; the defaults are the paper's MLP-SR.

    Args:
        features: What the network reads.
        convolutions: Number of 1x1 convolutions; left out where features have no positions.
        hidden: Number of hidden linear layers.
        hidden_width: Width of the hidden linear layers; None for as many as the first one reads.
    """
    spec = features.spec
    channels = spec.channels
    size = tuple(math.ceil(side / _REDUCTION) for side in spec.spatial) if convolutions else spec.spatial
    pooled = tuple(min(_POOLED, side) for side in size)
    image = [] if features.flat else [Plain("conv1x1", _spec(spec, channels, size), channels, 1)] * convolutions
    linear: list[Plain] = []
    width = channels * math.prod(pooled)
    for _ in range(hidden):
        linear.append(Plain("linear", _spec(spec, width, ()), hidden_width or width, 1))
        width = linear[-1].out_channels
    return DglNetwork(features, size, tuple(image), pooled, tuple(linear))


def _spec(spec: TensorSpec, channels: int, size: tuple[int, ...]) -> TensorSpec:
    return TensorSpec((spec.shape[0], channels, *size), spec.dtype, "NCHW" if size else "NC")


def _pair(size: tuple[int, ...]) -> tuple[int, int]:
    height, width = size
    return height, width
