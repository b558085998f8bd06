"""Resolution: the way in which a network halves it, the halvings that a copy owes, and class tokens among tokens."""

from __future__ import annotations

import math
import operator
from collections import Counter
from typing import Literal

from torch import fx, nn

from passes.common.layer_kinds import is_depthwise
from passes.ir import Network, TensorSpec
from passes.layers.adapters import Downsampling

Policy = Literal["deferred", "channels", "match", "none"]
"""The rule by which copied layers downsample, whatever their own stride: see :func:`owed`."""


def reduction(before: TensorSpec, after: TensorSpec) -> int:
    """Return the power of two by which resolution shrinks from one value to another; 1 without height and width.

    >>> reduction(TensorSpec((2, 8, 16, 16), layout="NCHW"), TensorSpec((2, 8, 4, 4), layout="NCHW"))
    4
    """
    return int(2 ** max(0, _halvings(before, after)))


def grid(spec: TensorSpec) -> tuple[int, ...]:
    """Return height and width of an image, or of the square image that tokens form; empty for other values."""
    if spec.layout != "NLC":
        return spec.spatial if len(spec.spatial) == 2 else ()
    side = math.isqrt(spec.shape[1])
    return (side, side) if side * side == spec.shape[1] else ()


def _halvings(before: TensorSpec, after: TensorSpec) -> int:
    """Return the halvings between two resolutions; negative where resolution grows."""
    sizes = list(zip(grid(before), grid(after), strict=False))
    if not sizes or not all(b and a for b, a in sizes):
        return 0
    return round(math.log2(max(b / a for b, a in sizes)))


def owed_halvings(now: TensorSpec, primary: TensorSpec) -> int:
    """Return the halvings between a copy's input and the primary network's resolution after the layer to be copied.

    AugLocal (ICLR 2024), section 3.2, downsamples when the width doubles; on ResNets, where width doubles as resolution
    halves, that is the same. A block performs one halving at most, so what it leaves is owed by the blocks after it.
    """
    return max(0, _halvings(now, primary))


def doublings(before: int, after: int) -> int:
    """Return how often a width has doubled: floor(log2(C_beta // C_previous)), 0 where it shrank.

    >>> doublings(16, 64)
    2
    """
    return max(1, after // before).bit_length() - 1


def base_width(network: Network, index: int) -> int:
    """Return C of a layer: the channels of its output or, for a bottleneck, those of its last spatial convolution."""
    width = network.layers[index].output.channels
    modules = [network.captured.module(network.captured.by_name[name]) for name in network.partition.nodes[index]]
    spatial = [
        module.out_channels
        for module in modules
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1 and not is_depthwise(module)
    ]
    return min(width, spatial[-1]) if spatial else width


def owed(policy: Policy, network: Network, now: TensorSpec, carried: int, before: int, candidate: int) -> int:
    """Return the halvings owed when layer ``candidate`` is about to be copied.

    - ``"deferred"``: those between the present resolution and the primary's after that layer;
    - ``"channels"``: those carried, and one for each doubling of width (AugLocal, ICLR 2024, section 3.2, as released);
    - ``"match"``: as ``"deferred"``, but a block performs all of them, see :func:`performed`;
    - ``"none"``: none.

    Args:
        policy: The rule.
        network: The primary network.
        now: Shape of the copy's input.
        carried: Halvings that the blocks before it owed and did not perform.
        before: The layer copied before, or, for the first copy, the one whose output the auxiliary network reads.
        candidate: The layer to copy.
    """
    if policy == "none":
        return 0
    if policy == "channels":
        return carried + doublings(base_width(network, before), base_width(network, candidate))
    return owed_halvings(now, network.layers[candidate].output)


def performed(policy: Policy, halvings: int) -> int:
    """Return how many of the halvings owed a block performs: one at most, but all of them under ``"match"``."""
    return halvings if policy == "match" else min(1, halvings)


def downsampling_of(network: Network) -> Downsampling:
    """Return the way in which most layers after the stem that halve resolution do so: stride or a pooling layer."""
    ways: Counter[Downsampling] = Counter()
    for layer in network.layers[1:]:
        if reduction(layer.input, layer.output) > 1:
            ways[_downsampling_in(network, layer.index)] += 1
    return ways.most_common(1)[0][0] if ways else "stride"


def _downsampling_in(network: Network, index: int) -> Downsampling:
    """Return the way in which one layer halves resolution; a stride counts before a pooling layer."""
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


def stage_starts(network: Network) -> tuple[int, ...]:
    """Return the layers that begin a stage: those with other output channels or resolution than the layer before."""
    outputs = [(layer.output.channels, layer.output.spatial) for layer in network.layers]
    return tuple(i for i in range(len(outputs)) if i == 0 or outputs[i] != outputs[i - 1])


def tokens_with_class(network: Network) -> int:
    """Return the number of tokens, the class token included; 0 where the classifier reads no class token.

    The classifier reads one if it takes item 0 of dimension 1 of (N, T, C), as ``x[:, 0]`` does.
    """
    captured, shapes = network.captured, network.shapes
    for name in network.partition.classifier:
        node = captured.by_name[name]
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        spec = shapes.specs[source.name] if source is not None else None
        if spec is not None and spec.layout == "NLC" and _takes_first(node):
            return spec.shape[1]
    return 0


def _takes_first(node: fx.Node) -> bool:
    """Return whether an operation takes item 0 of dimension 1."""
    if node.target == "select":
        return node.args[1:] == (1, 0)
    if node.target is not operator.getitem:
        return False
    index = node.args[1]
    return isinstance(index, tuple) and index[:2] == (slice(None), 0)
