"""DGL: auxiliary networks of 1x1 convolutions at a quarter of the resolution, then a multilayer perceptron.

Belilovsky, Eickenberg, Oyallon: "Decoupled Greedy Learning of CNNs", ICML 2020. Each module is trained by the criterion
of its own auxiliary network, all at once. The auxiliary network is the paper's "MLP-SR-aux"; its figures are those
compared in AugLocal (ICLR 2024), appendix A.3 and table 6.

Deviations, and choices the paper leaves open:

- Sides that are no multiple of four are pooled to a quarter rounded up, as in the released code.
- Where fewer than 2x2 positions are left, they are not repeated: the paper's networks are never that small.
- The paper knows images with channels first. Those with channels last, and tokens, are made such first; the mean of
  class tokens and registers is added to every position. Features without positions get the linear layers alone.
- By default every local layer is a module by itself, and a layer whose parameters are all frozen goes with the next one
  that learns.
- Convolutions are drawn as AugLocal's (its appendix A.2), linear layers as torch does, and the last one as the primary
  network's own output layer was.
- Maps of logits are refused: two fully connected layers leave no positions.
- The paper's asynchronous training, with a replay buffer between modules, is not offered.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

from torch import nn

from localize.methods.base import Context, Method
from localize.methods.checks import require_count
from localize.methods.layerwise import (
    Features,
    build_linear,
    described,
    features_of,
    plan_modules,
    require_vector,
)
from localize.methods.networks.blocks import Blocks
from localize.plan.plan import Auxiliary, LocalModulePlan
from passes.common.initializer import Initializer
from passes.ir import TensorSpec
from passes.layers.plain_blocks import Plain, build_plain

_REDUCTION = 4
"""By how much the first pooling lowers resolution."""
_POOLED = 2
"""Height and width that the linear layers read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """DGL's options; the defaults are the paper's MLP-SR."""

    convolutions: int = 3
    """1x1 convolutions + norm + ReLU at a quarter of the resolution. 0 is the paper's MLP-aux."""
    hidden: int = 2
    """Hidden linear layers + norm + ReLU."""
    hidden_width: int | None = None
    """Width of the hidden linear layers; None for as many as the first one reads: 4 times the channels of an image."""

    def __post_init__(self) -> None:
        require_count("convolutions", self.convolutions, 0)
        require_count("hidden", self.hidden, 0)
        require_count("hidden_width", self.hidden_width, 1, optional=True)


@dataclass(frozen=True, slots=True)
class Network:
    """An auxiliary network's layers."""

    features: Features
    size: tuple[int, ...]
    """Of the image that the convolutions read; empty without positions."""
    convolutions: tuple[Plain, ...]
    pooled: tuple[int, ...]
    """Of the image that the linear layers read; empty without positions."""
    hidden: tuple[Plain, ...]

    @property
    def blocks(self) -> tuple[Plain, ...]:
        """Hidden layers in order."""
        return (*self.convolutions, *self.hidden)

    @property
    def inputs(self) -> int:
        """Of the classifier."""
        if self.hidden:
            return self.hidden[-1].out_channels
        return self.features.spec.channels * math.prod(self.pooled)


def network_behind(features: Features, options: Options) -> Network:
    """The layers of MLP-SR behind features."""
    spec = features.spec
    channels = spec.channels
    size = tuple(math.ceil(side / _REDUCTION) for side in spec.spatial) if options.convolutions else spec.spatial
    pooled = tuple(min(_POOLED, side) for side in size)
    convolutions = []
    if not features.flat:
        block = Plain("conv1x1", _spec(spec, channels, size), channels, 1)
        convolutions = [block] * options.convolutions
    hidden: list[Plain] = []
    flat = channels * math.prod(pooled)
    for _ in range(options.hidden):
        hidden.append(Plain("linear", _spec(spec, flat, ()), options.hidden_width or flat, 1))
        flat = hidden[-1].out_channels
    return Network(features, size, tuple(convolutions), pooled, tuple(hidden))


def _spec(spec: TensorSpec, channels: int, size: tuple[int, ...]) -> TensorSpec:
    return TensorSpec((spec.shape[0], channels, *size), spec.dtype, "NCHW" if size else "NC")


def describe(network: Network, outputs: int) -> Auxiliary:
    """The auxiliary network in the plan."""
    blocks = network.blocks
    strides = _strides(network)
    return Auxiliary(
        selected=(),
        depth=len(blocks) + 1,
        params=sum(block.params for block in blocks) + (network.inputs + 1) * outputs,
        macs=sum(block.macs for block in blocks) + network.inputs * outputs,
        blocks=tuple(replace(described(block), stride=stride) for block, stride in zip(blocks, strides, strict=True)),
        head=" > ".join([*([] if blocks else _pools(network)), f"linear({network.inputs}, {outputs})"]),
    )


def _strides(network: Network) -> list[int]:
    """How much is pooled in front of each block: as a power of two, rounded up where sides are none."""
    sides = [max(size, default=1) for size in (network.features.spec.spatial, network.size, network.pooled)]
    quarter, last = (2 ** math.ceil(math.log2(before / after)) for before, after in itertools.pairwise(sides))
    strides = [1] * len(network.blocks)
    if network.convolutions:
        strides[0] = quarter
    if network.hidden:
        strides[len(network.convolutions)] = last
    return strides


def _pools(network: Network) -> list[str]:
    return [f"pool({'x'.join(map(str, network.pooled))})"] if network.pooled else []


def plan(context: Context, options: Options) -> tuple[LocalModulePlan, ...]:
    """Local modules with their auxiliary networks.

    Raises:
        MethodError: The network predicts maps, or features are neither images, tokens nor plain.
    """
    require_vector(context, "dgl", "fully connected layers leave no positions")
    outputs = context.prediction.outputs
    return plan_modules(
        context, lambda place: describe(network_behind(features_of(context, place.layer), options), outputs)
    )


def build(context: Context, module: LocalModulePlan, options: Options, draw: Initializer) -> nn.Module | None:
    """The auxiliary network of a planned module."""
    if module.auxiliary is None:
        return None
    return build_network(context, network_behind(features_of(context, module.layers[-1]), options), draw)


def build_network(context: Context, network: Network, draw: Initializer) -> nn.Sequential:
    """Pooling, 1x1 convolutions, pooling, linear layers: from features to (N, outputs)."""
    made = Blocks()
    for part in network.features.build():
        made.add_module("grid", part)
    if network.convolutions:
        made.add_module("reduce", nn.AdaptiveAvgPool2d(_pair(network.size)))
    for position, block in enumerate(network.convolutions):
        made.add_module(f"convolution_{position}", build_plain(block, draw))
    if network.pooled:
        made.add_module("pool", nn.AdaptiveAvgPool2d(_pair(network.pooled)))
    made.add_module("flatten", nn.Flatten())
    for position, block in enumerate(network.hidden):
        made.add_module(f"hidden_{position}", build_plain(block, draw))
    made.add_module("classifier", build_linear(context, network.inputs, draw))
    return made


def _pair(size: tuple[int, ...]) -> tuple[int, int]:
    height, width = size
    return height, width


METHOD = Method(Options=Options, plan=plan, build=build)
