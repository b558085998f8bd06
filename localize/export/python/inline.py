"""Find the nodes of a graph that get no line of their own: inlined expressions, and sizes that nobody reads."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import fx

SIZES = ("shape", "ndim", "device", "dtype")


def dead(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Return the nodes that read a size which nobody uses."""
    unread: set[fx.Node] = set()
    for node in reversed(nodes):
        size = node.target in (getattr, operator.getitem) or looks_at_sizes(node)
        if size and node.op != "placeholder" and is_size(node) and unread.issuperset(node.users):
            unread.add(node)
    return unread


def inlined(nodes: Sequence[fx.Node], unread: set[fx.Node]) -> set[fx.Node]:
    """Return the nodes whose expressions stand where they are read, instead of in a line of their own.

    These are parameters and buffers, attributes of a tensor that only yield items, sizes and items with one reader, and
    a comparison that is only asserted.

    Args:
        nodes: The nodes of the graph, in order.
        unread: Sizes that nobody uses; they do not count as readers.
    """
    inline: set[fx.Node] = set()
    for node in nodes:
        users = [user for user in node.users if user not in unread]
        looks = node.op == "call_function" and node.target is getattr and node.args[1] in SIZES
        items = looks and all(user.target is operator.getitem for user in users)
        single = len(users) == 1 and users[0].op != "output"
        first = node.args[0] if node.args else None
        item = node.target is operator.getitem and isinstance(node.args[1], int)
        item = item and isinstance(first, fx.Node) and first in inline and first.op != "get_attr"
        asserted = single and users[0].target is torch._assert and _is_comparison(node)
        if node.op == "get_attr" or items or ((looks or item) and single) or asserted:
            inline.add(node)
    return inline


def looks_at_sizes(node: fx.Node) -> bool:
    """Return whether a node asks a tensor for its size, or for another attribute."""
    return node.target is getattr or (node.op == "call_method" and node.target in ("size", "dim", "numel"))


def is_size(node: fx.Node) -> bool:
    """Return whether a node reads a shape, or an item of a shape."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and is_size(node.args[0])
    return (node.target is getattr and node.args[1] in SIZES) or node.target == "size"


def _is_comparison(node: fx.Node) -> bool:
    return node.target in (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)
