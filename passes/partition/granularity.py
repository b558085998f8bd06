"""Granularity: larger local layers than the minimal ones, or cuts that the user names."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import fx, nn

from passes.errors import PartitionError
from passes.ir import Captured
from passes.partition.building_blocks import BuildingBlocks, Span
from passes.partition.flow import Segments

Granularity: TypeAlias = str | type[nn.Module] | Sequence[str | type[nn.Module]]
"""``"minimal"``, ``"block"``, a module class or several, or the names of the modules after which to cut."""


@dataclass(frozen=True, slots=True)
class Named:
    """Modules after which the user wants the network to be cut."""

    names: tuple[str, ...]


def check_granularity(value: Any) -> Granularity | Named:
    """Read the user's ``granularity=``.

    Returns:
        ``"minimal"``, ``"block"``, a tuple of module classes, or :class:`Named`.

    Raises:
        PartitionError: ``value`` is none of what :data:`Granularity` lists.

    >>> check_granularity(["stem", "layer1"])
    Named(names=('stem', 'layer1'))
    """
    if value in ("minimal", "block"):
        return str(value)
    if isinstance(value, type) and issubclass(value, nn.Module):
        return (value,)
    if isinstance(value, (list, tuple)) and value:
        if all(isinstance(item, str) for item in value):
            return Named(tuple(value))
        if all(isinstance(item, type) and issubclass(item, nn.Module) for item in value):
            return tuple(value)
    raise PartitionError(
        f"granularity={value!r} is unknown",
        remedy="Give 'minimal', 'block', a module class, or a list of the names of modules after which to cut",
    )


def whole_spans(blocks: BuildingBlocks, granularity: Granularity | Named) -> list[Span]:
    """Return the spans that stay whole because of the granularity.

    Raises:
        PartitionError: ``granularity`` names classes of which the model has no module.
    """
    if granularity == "block":
        return blocks.listed()
    if not isinstance(granularity, tuple):
        return []
    kinds: tuple[Any, ...] = granularity
    if not any(isinstance(module, kinds) for module in blocks.captured.model.modules()):
        raise PartitionError(
            f"the model has no {' or '.join(kind.__name__ for kind in kinds)}",
            where=type(blocks.captured.model).__name__,
            remedy="Give the class of the blocks that the model is built of",
        )
    return blocks.of_class(kinds)


def named_borders(
    segments: Segments, granularity: Named, mixing: Sequence[int], tied: Sequence[Span]
) -> Iterator[tuple[str, int]]:
    """Yield each name with the index of the border right after what it names, from input to output.

    Args:
        segments: Segments and borders.
        granularity: Names of modules, or of values in the captured graph.
        mixing: Segments with mixing operations.
        tied: Spans within which one parameter is used.

    Raises:
        PartitionError: A name is unknown, too many tensors cross after it, one side of the cut holds no mixing
            operation, or a parameter is used on both sides.
    """
    borders = sorted((_border_after(segments, name), name) for name in dict.fromkeys(granularity.names))
    previous = -1
    for index, name in borders:
        if not any(previous < i <= index for i in mixing) or not any(i > index for i in mixing):
            raise PartitionError(
                f"a cut after {name!r} leaves a layer without convolution, linear layer or attention",
                where=name,
                remedy="Leave it out, or cut later",
            )
        if any(span.first <= index < span.last for span in tied):
            raise PartitionError(
                f"a cut after {name!r} lies between two uses of the same parameters or buffers",
                where=name,
                remedy="Layers that share parameters belong to one local module: cut elsewhere",
            )
        previous = index
        yield name, index


def _border_after(segments: Segments, name: str) -> int:
    """Return the index of the border right after what ``name`` names.

    Raises:
        PartitionError: There is no module or value of this name, or it is not followed by a border.
    """
    flow = segments.flow
    node = _value_of(flow.captured, name)
    if node is None:
        known = [call.path for call in flow.captured.calls]
        known += [str(n.target) for n in flow.nodes if n.op == "call_module"]
        close = difflib.get_close_matches(name, known, n=3)
        raise PartitionError(
            f"unknown module {name!r} to cut after",
            where=type(flow.captured.model).__name__,
            remedy=f"Did you mean {', '.join(close)}?" if close else "Give names of modules that the forward calls",
        )
    position = flow.order[node.name]
    for index, border in enumerate(segments.borders):
        if border.position >= position and node.name in border.live:
            if border.position == position:
                return index
            break
    width = flow.width_after(node.name)
    raise PartitionError(
        f"the network cannot be cut after {name!r}",
        where=name,
        source=flow.captured.sources.get(node.name),
        why=f"{width} tensors cross there" if width else "its result is not a tensor that flows to the output",
        remedy=f"Allow wider cuts: max_cut={width}" if width else "Cut elsewhere",
    )


def _value_of(captured: Captured, name: str) -> fx.Node | None:
    """Return the node of what the module or value of this name gives, the last time it is called."""
    for call in reversed(captured.calls):
        if call.path == name and isinstance(call.result, fx.Node):
            return call.result
    for node in reversed(captured.nodes[:-1]):
        if (node.op == "call_module" and node.target == name) or node.name == name:
            return node
    return None


def path_after(captured: Captured, node: fx.Node) -> str | None:
    """Return the name by which ``granularity=`` asks for a cut after a node.

    That is the path of the leaf module it calls or of the outermost module that returns its value; else its own name.
    None where the name leads to another node, since what it names is called again later.
    """
    calls = [call.path for call in captured.calls if call.result is node]
    path = str(node.target) if node.op == "call_module" else next(iter(calls), node.name)
    named = _value_of(captured, path)
    return path if named is node else None
