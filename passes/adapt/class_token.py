"""Class tokens: whether a network's classifier reads the first of its tokens."""

from __future__ import annotations

import operator

from torch import fx

from passes.ir import Network


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
