"""Repairs: changes to a layer's graph where it meets an input that it was not made for.

Each repair looks at one :class:`RepairSite`, a node about to run, and raises :class:`Restart` with new edits if it has
something to change: the layer then runs again from its start, so that nodes before it see the change. Each repair must
change something, and no other repair may undo it. An unknown operation is never assumed to be harmless: what cannot be
repaired is :class:`Unreachable`.

To add a repair:

- A class of leaf layer that should follow another number of channels is an entry in ``retype.FITS``; the shapes of its
  parameters follow from its attributes in ``retype._shapes``.
- An operation that should be made to agree is a function of the :class:`RepairSite` in this file, called by
  ``Trial._prepare``, or after the operation has failed. :mod:`passes.adapt.rebuild` must be able to build its edits.
- Another way of meeting the downsampling is an ``Attempt`` in ``Adapter._attempts``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import fx, nn

from passes.adapt import retype
from passes.adapt.arguments import SPLITS, Numbers, Path, carries, follow, leaves, split_again
from passes.adapt.copy_recipe import ADDITIONS, PRODUCTS, Body, Edits, shortcut
from passes.adapt.resolution import reduction
from passes.errors import first_line
from passes.ir import Captured, Shapes, TensorSpec
from passes.layers.adapters import Projection

JOINS = ADDITIONS | PRODUCTS
CONCATENATIONS = {torch.cat, torch.concat, torch.concatenate}

T = TypeVar("T")


class Unreachable(Exception):
    """No repair makes the layer run; the message says why."""


class Restart(Exception):
    """The layer must run again from its start, with other edits.

    Args:
        edits: All edits, the new one included.
    """

    def __init__(self, edits: Edits) -> None:
        super().__init__()
        self.edits = edits


def attempt(run: Callable[[], T]) -> T:
    """Run a piece of the user's network on shapes that it was not made for.

    Raises:
        Unreachable: It raised an error, of whatever kind.
    """
    try:
        return run()
    except (
        RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError, ZeroDivisionError
    ) as error:  # fmt: skip
        raise Unreachable(first_line(error)) from error


@dataclass(frozen=True, slots=True)
class RepairSite:
    """A node that is about to run, its arguments, and the values of the nodes before it."""

    captured: Captured
    shapes: Shapes
    numbers: Numbers
    body: Body
    edits: Edits
    values: Mapping[int, Any]
    """Values of the nodes that have run, by position in the layer."""
    i: int
    """Position of the node in the layer."""
    args: tuple[Any, ...]
    """Values of its positional arguments."""
    kwargs: Mapping[str, Any]
    """Values of its keyword arguments."""

    @property
    def node(self) -> fx.Node:
        """The node that is about to run."""
        return self.body.nodes[self.i]

    @property
    def subject(self) -> tuple[TensorSpec, torch.Tensor] | None:
        """The node's first argument in the primary network and here; None if it is not a tensor."""
        first = self.node.args[0] if self.node.args else None
        was = self.shapes.specs[first.name] if isinstance(first, fx.Node) else None
        now = self.args[0] if self.args else None
        return (was, now) if was is not None and isinstance(now, torch.Tensor) else None

    def reshaped(self, position: int, shape: tuple[int, ...]) -> Edits:
        """Return the edits with another shape of the parameter that the node at ``position`` reads."""
        return replace(self.edits, shapes={**self.edits.shapes, position: shape})

    def renumbered(self, new: Mapping[Path, int]) -> None:
        """Set other numbers among the node's arguments.

        Raises:
            Restart: ``new`` has an entry.
        """
        if new:
            known = self.edits.arguments.get(self.i, {})
            raise Restart(replace(self.edits, arguments={**self.edits.arguments, self.i: {**known, **new}}))


# Numbers --------------------------------------------------------------------------------------------------------------


def keep_numbers(site: RepairSite) -> None:
    """Keep numbers of channels where the tensor that they are applied to still has those channels.

    An attention reshapes its projection by numbers that it read off its input, as it happens to be as wide: on another
    input the projection is as wide as before, so the numbers must be too.
    """
    if site.subject is None:
        return
    was, now = site.subject
    site.renumbered(
        {
            path: value
            for path, channels, value in _moved(site)
            if any(carries(was, tuple(now.shape), count) for count in channels)
        }
    )


def follow_split(site: RepairSite) -> None:
    """Split other channels in the same proportions."""
    if site.node.target not in SPLITS or site.subject is None or site.i in site.edits.arguments:
        return
    was, now = site.subject
    dim = site.kwargs.get("dim", site.args[2] if len(site.args) > 2 else 0)
    key: int | str | None = 1 if len(site.args) > 1 else next((name for name in site.kwargs if name != "dim"), None)
    if key is None or was.shape[dim] == now.shape[dim]:
        return
    sizes = site.args[1] if isinstance(key, int) else site.kwargs[key]
    if isinstance(sizes, (list, tuple)) and sum(sizes) == now.shape[dim]:
        return
    parts = split_again(sizes, was.shape[dim], now.shape[dim])
    if parts is None:
        raise Unreachable(f"{site.node.name} would leave parts without channels")
    site.renumbered({(key,): parts} if isinstance(parts, int) else {(key, k): size for k, size in enumerate(parts)})


def renumber(site: RepairSite) -> None:
    """Change numbers after an operation has failed: those read stay as they were, or those written follow a size."""
    site.renumbered({path: was for path, _, was in _moved(site)})
    if site.subject is None or len(site.subject[0].shape) != site.subject[1].ndim:
        return
    was, now = site.subject
    sizes = list(zip(was.shape, now.shape, strict=True))
    if was.shape[0] == site.shapes.input.shape[0]:
        del sizes[0]  # the number of samples is not one of channels
    known = site.edits.arguments.get(site.i, {})
    written = {
        path: value
        for path, value in leaves(site.node.args, site.node.kwargs)
        if isinstance(value, int) and not isinstance(value, bool) and path not in known
    }
    site.renumbered(follow(written, {old: new for old, new in sizes if old != new}))


def _moved(site: RepairSite) -> list[tuple[Path, set[int], int]]:
    """Return the arguments that are numbers computed from channels and differ from the primary network's.

    Returns:
        For each its place, those numbers of channels, and its value in the primary network.
    """
    current = dict(leaves(site.args, site.kwargs))
    known = site.edits.arguments.get(site.i, {})
    moved = []
    for path, number in leaves(site.node.args, site.node.kwargs):
        if not isinstance(number, fx.Node) or path in known or not isinstance(current.get(path), int):
            continue
        was = site.numbers.value(number)
        channels = {site.numbers.value(read) for read in site.numbers.reads(number) if _is_other(site, read)}
        if isinstance(was, int) and was != current[path] and channels:
            moved.append((path, channels, was))
    return moved


def _is_other(site: RepairSite, number: fx.Node) -> bool:
    """Return whether a number differs from its value in the primary network."""
    i = site.body.position.get(number.name)
    return i is not None and site.values.get(i) != site.numbers.value(number)


# Parameters that the graph reads directly -----------------------------------------------------------------------------


def widen_weight(site: RepairSite) -> None:
    """Give the weight of a functional layer the channels of its input, where it is a parameter itself."""
    node = site.node
    weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    i = _parameter(site, weight)
    if i is None or site.subject is None:
        return
    old = tuple(site.values[i].shape)
    new = retype.FUNCTIONS[node.target](old, tuple(site.subject[1].shape), site.args, site.kwargs)
    if new is not None and new != old:
        raise Restart(site.reshaped(i, new))


def widen_concatenated(site: RepairSite) -> None:
    """Give parameters that are concatenated with tensors of other channels (class tokens) those channels."""
    operands = site.node.args[0] if site.node.args else None
    if not isinstance(operands, (list, tuple)):
        return
    specs = [site.shapes.specs[n.name] if isinstance(n, fx.Node) else None for n in operands]
    for node, own in zip(operands, specs, strict=True):
        for was, now in zip(specs, site.args[0], strict=True):
            if own is not None and was is not None and own.channels == was.channels:
                _widen_parameter(site, node, was, now)


def _widen_parameter(site: RepairSite, node: fx.Node, was: TensorSpec | None, now: torch.Tensor) -> None:
    """Give a parameter behind ``node`` the channels of ``now``, if that had its channels before.

    Followed back through operations of one tensor: a parameter may be reshaped or expanded first.
    """
    while node.op != "get_attr":
        tensors = [parent for parent in node.all_input_nodes if parent.name not in site.shapes.numbers]
        if len(tensors) != 1:
            return
        node = tensors[0]
    i = _parameter(site, node)
    if i is None or was is None:
        return
    old, new = was.channels, now.shape[was.channel_dim]
    shape = tuple(new if size == old else size for size in site.values[i].shape)
    if old != new and shape != tuple(site.values[i].shape) and shape.count(new) == 1:
        raise Restart(site.reshaped(i, shape))


def _parameter(site: RepairSite, node: object) -> int | None:
    """Return the position of a node that reads a parameter; None for any other."""
    i = site.body.position.get(node.name) if isinstance(node, fx.Node) else None
    return i if i is not None and isinstance(site.values.get(i), nn.Parameter) else None


# Joins ----------------------------------------------------------------------------------------------------------------


def join(site: RepairSite, now: list[torch.Tensor]) -> None:
    """Make the operands of an addition or a multiplication agree.

    Args:
        site: The join; both of its arguments are tensors.
        now: The operands, after the projections that they have already.

    Raises:
        Restart: The operands differ, and a change brings them together.
        Unreachable: The operands differ, and no change brings them together.
    """
    operands = [a for a in site.node.args if isinstance(a, fx.Node)]
    was = [site.shapes.specs[n.name] for n in operands]
    if was[0] is None or was[1] is None or _agree(was[0].shape, was[1].shape, now[0].shape, now[1].shape):
        return
    for k in (0, 1):
        _widen_parameter(site, operands[k], was[1 - k], now[1 - k])
        _widen_gate(site, operands[k], now[k], now[1 - k])
    result = site.shapes.specs[site.node.name]
    # The layout of a value that comes out of windows may be unknown; it has that of the sum it is part of.
    layouts = [result.layout if result is not None and result.shape == w.shape else w.layout for w in was if w]
    specs = [TensorSpec(tuple(v.shape), v.dtype, layout) for v, layout in zip(now, layouts, strict=True)]
    if was[0].shape != was[1].shape or specs[0].layout == "other":
        raise Unreachable(f"the operands of {site.node.name} do not agree")
    raise Restart(_project(site, operands, specs))


def _widen_gate(site: RepairSite, node: fx.Node, gate: torch.Tensor, gated: torch.Tensor) -> None:
    """Let the last layer of a gate (squeeze-excite, one pixel) give the channels of the map that it multiplies."""
    if gate.ndim != 4 or any(size != 1 for size in gate.shape[2:]) or all(size == 1 for size in gated.shape[2:]):
        return
    while node.name in site.body.position:
        module = site.captured.module(node)
        changes = retype.produce(module, gated.shape[1]) if module is not None else None
        if changes is not None:
            raise Restart(site.edits.changed(site.body.position[node.name], changes))
        if len(node.all_input_nodes) != 1:
            return
        node = node.all_input_nodes[0]


def _project(site: RepairSite, operands: list[fx.Node], now: list[TensorSpec]) -> Edits:
    """Return the edits that bring one operand of an addition to the shape of the other, by a projection or a stride."""
    name, body = site.node.name, site.body
    paths = [shortcut(site.captured, site.shapes, body, node) for node in operands]
    # The identity is projected before a shortcut that is one already, and that before a branch.
    side = min((0, 1), key=lambda k: 2 if (path := paths[k]) is None else bool(path))
    source, target = now[side], now[1 - side]
    stride = reduction(source, target)
    if tuple(-(-size // stride) for size in source.spatial) != target.spatial:
        raise Unreachable(f"the operands of {name} differ in resolution")
    convolutions = [p for p in paths[side] or () if isinstance(site.captured.module(body.nodes[p]), nn.Conv2d)]
    if convolutions and source.channels == target.channels:
        return site.edits.changed(convolutions[0], {"stride": (stride, stride)})
    if (site.i, side) in site.edits.projections:
        raise Unreachable(f"a projection at {name} did not make its operands agree")
    projection = Projection(source.channels, target.channels, stride, source.layout)
    return replace(site.edits, projections={**site.edits.projections, (site.i, side): projection})


def _agree(was_a: tuple[int, ...], was_b: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Return whether two shapes still broadcast as they did: sizes are equal, or one of them is 1 as before."""
    if len(was_a) == len(was_b) and len(a) == len(b):
        return all(p == q or (1 in (p, q) and w != v) for p, q, w, v in zip(a, b, was_a, was_b, strict=True))
    try:
        return tuple(torch.broadcast_shapes(a, b)) == tuple(a if len(a) >= len(b) else b)
    except RuntimeError:
        return False
