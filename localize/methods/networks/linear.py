"""Auxiliary networks that end in linear layers: a plain block, pooling, a hidden linear layer and the classifier."""

from __future__ import annotations

from torch import nn

from localize.methods.networks.blocks import AuxiliaryBlocks
from localize.methods.networks.features import Features
from localize.methods.networks.pooling import build_pool, describe_pool
from localize.plan.records import Auxiliary, AuxiliaryBlock
from passes.common.initializer import Initializer, bare
from passes.layers.plain_blocks import Plain, build_plain


def build_linear(inputs: int, outputs: int, draw: Initializer, like: nn.Module | None = None) -> nn.Module:
    """Build a classifier of one linear layer: (N, inputs) -> (N, outputs).

    Args:
        inputs: Values that it reads.
        outputs: Logits that it returns.
        draw: Source of its weights.
        like: A layer whose initializer it gets, such as ``context.adapter.output_layer()``; None for torch's.
    """
    layer = bare(nn.Linear, inputs, outputs)
    if not draw.imitate_(layer, like):
        draw.plain_(layer)
    return layer


def describe_block(block: Plain) -> AuxiliaryBlock:
    """Describe a plain block for the plan."""
    return AuxiliaryBlock(
        source=None,
        in_channels=block.input.channels,
        out_channels=block.out_channels,
        stride=block.stride,
        projection=False,
        adapter=None,
        kind=block.kind,
    )


def build_block(features: Features, block: Plain, draw: Initializer) -> nn.Sequential:
    """Build a plain block after features, the rearrangement to an image included."""
    network = AuxiliaryBlocks()
    for part in features.build():
        network.add_module("grid", part)
    network.add_module("block", build_plain(block, draw))
    return network


def describe_two_linear(block: Plain, width: int, outputs: int) -> Auxiliary:
    """Describe :func:`build_two_linear` for the plan.

    Args:
        block: The block in front.
        width: Width of the hidden linear layer.
        outputs: Logits of the classifier.
    """
    weights = block.out_channels * width + width * outputs
    linear = [f"linear({block.out_channels}, {width})", "relu", f"linear({width}, {outputs})"]
    return Auxiliary(
        selected=(),
        depth=3,
        params=block.params + weights + width + outputs,
        macs=block.macs + weights,
        blocks=(describe_block(block),),
        head=" > ".join([*describe_pool(block.output, "average"), *linear]),
    )


def build_two_linear(
    features: Features, block: Plain, width: int, outputs: int, draw: Initializer, like: nn.Module | None = None
) -> nn.Sequential:
    """Build a plain block, average pooling, a linear layer + ReLU, and the classifier: features -> (N, outputs).

    Args:
        features: Input of the block.
        block: The block in front.
        width: Width of the hidden linear layer.
        outputs: Logits of the classifier.
        draw: Source of weights.
        like: A layer whose initializer the classifier gets; see :func:`build_linear`.
    """
    network = build_block(features, block, draw)
    pool = build_pool(block.output, "average")
    if pool is not None:
        network.add_module("pool", pool)
    network.add_module("hidden", draw.plain_(bare(nn.Linear, block.out_channels, width)))
    network.add_module("relu", nn.ReLU())
    network.add_module("classifier", build_linear(width, outputs, draw, like))
    return network
