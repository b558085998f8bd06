"""Shortcuts of a residual block: which operand of an addition comes from the block's input, and by which way."""

from __future__ import annotations

import operator

import torch
from torch import fx
from torch.nn.modules.conv import _ConvNd

from passes.adapt.recipe import Body
from passes.ir import Captured, Shapes

ADDITIONS = {
    operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub, "add", "add_", "sub", "sub_"
}  # fmt: skip
PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}


def shortcut(captured: Captured, shapes: Shapes, body: Body, node: fx.Node) -> tuple[int, ...] | None:
    """Positions on the way from ``node`` back to the block's input, if that way is a shortcut.

    A shortcut is a chain without a spatial convolution and with one mixing operation at most; the identity is the empty
    one.

    Returns:
        Positions, last first; None if the way is no shortcut.
    """
    found: list[int] = []
    mixing = 0
    while not body.reads(node.name):
        module = captured.module(node)
        if node.name not in body.position or len(node.all_input_nodes) != 1:
            return None
        if isinstance(module, _ConvNd) and max(module.kernel_size) > 1:
            return None
        mixing += shapes.costs[node.name].mixing
        found.append(body.position[node.name])
        node = node.all_input_nodes[0]
    return tuple(found) if mixing <= 1 else None


def projected_shortcuts(captured: Captured, shapes: Shapes, body: Body) -> list[tuple[int, ...]]:
    """The block's shortcuts that hold a mixing operation: those that are projections."""
    found = []
    for node in body.nodes:
        operands = [a for a in node.args if isinstance(a, fx.Node)]
        if node.target not in ADDITIONS or len(operands) != 2:
            continue
        paths = [shortcut(captured, shapes, body, operand) for operand in operands]
        if (paths[0] is None) == (paths[1] is None):
            continue
        path = paths[0] or paths[1]
        if path and any(shapes.costs[body.nodes[p].name].mixing for p in path):
            found.append(path)
    return found
