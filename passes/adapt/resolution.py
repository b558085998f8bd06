"""Resolution: how a network halves it, and how many halvings an auxiliary network owes."""

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
"""When a copied layer downsamples, whatever its own stride: see :func:`owed`."""


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


def doublings(before: int, after: int) -> int:
    """How often a width has doubled: floor(log2(C_beta // C_previous)), 0 where it shrank."""
    return max(1, after // before).bit_length() - 1


def base_width(network: Network, index: int) -> int:
    """C of a layer: the channels of its output or, for a bottleneck, those of its last spatial convolution."""
    width = network.layers[index].output.channels
    modules = [network.captured.module(network.captured.by_name[name]) for name in network.partition.nodes[index]]
    spatial = [
        module.out_channels
        for module in modules
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1 and not is_depthwise(module)
    ]
    return min(width, spatial[-1]) if spatial else width


def owed(policy: Policy, network: Network, now: TensorSpec, carried: int, before: int, candidate: int) -> int:
    """Halvings owed when layer ``candidate`` is about to be copied.

    - ``"deferred"``: those between the present resolution and the primary's after that layer;
    - ``"channels"``: those carried, and one for each doubling of width (AugLocal, ICLR 2024, section 3.2, as released);
    - ``"match"``: as ``"deferred"``, but a block performs all of them, see :func:`performed`;
    - ``"none"``: none.

    Args:
        policy: As above.
        network: The primary network.
        now: What the copy will read.
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
    """How many of the halvings owed a block performs: one at most, but all of them under ``"match"``."""
    return halvings if policy == "match" else min(1, halvings)


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


def stage_starts(network: Network) -> tuple[int, ...]:
    """Layers at which a stage begins: those that give other channels, or another resolution, than the layer before."""
    outputs = [(layer.output.channels, layer.output.spatial) for layer in network.layers]
    return tuple(i for i in range(len(outputs)) if i == 0 or outputs[i] != outputs[i - 1])


def tokens_with_class(network: Network) -> int:
    """Number of tokens of which the first is the class token, itself included; 0 where the classifier reads none.

    It reads one if it takes item 0 of dimension 1 of (N, T, C), as ``x[:, 0]`` does.
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
    if node.target == "select":
        return node.args[1:] == (1, 0)
    if node.target is not operator.getitem:
        return False
    index = node.args[1]
    return isinstance(index, tuple) and index[:2] == (slice(None), 0)
