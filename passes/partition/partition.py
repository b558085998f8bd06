"""Partition: Captured + Shapes -> the minimal local layers, and the classifier.

1. The points that few enough tensors cross split the graph into consecutive *segments*
   (:mod:`passes.partition.flow`). One tensor is the rule: every path from input to output then goes through it.
   Densely connected networks need more.
2. A border between two layers needs a mixing operation on either side: norms, activations, pooling, dropout and
   depthwise convolutions go with the mixing operation they belong to. Of VGG, convolution, norm, ReLU and pooling are
   one layer; a depthwise convolution and the pointwise one after it are one layer.
3. Homologous modules are cut alike: where one instance of a building block cannot be cut, because a skip connection
   passes round it, no instance of it is (:mod:`passes.partition.building_blocks`).
4. Among the points that could be the border, one that fewer tensors cross wins, then the one where control leaves and
   enters most modules, the latest among equals: so a border falls between blocks where there are blocks, and right
   before the next convolution where there are none.
5. Two uses of one parameter, or of one module with buffers, lie in one layer.
6. The classifier starts where height and width are gone (global pooling, flattening, taking the class token), and holds
   every mixing operation after that: all of VGG's linear layers. If the model never had height and width, or keeps them
   to the end (FCN), the classifier is the last mixing operation.

The reason for each border that is not a cut stays on the partition: :attr:`passes.ir.Partition.candidates`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import fx, nn

from passes.common.parameters import own_tensors, tensors_behind
from passes.errors import PartitionError
from passes.ir import Captured, Layer, Partition, Shapes
from passes.partition.candidates import candidates
from passes.partition.cuts import Choice, Cut, Cutter, enclosing
from passes.partition.flow import WIDEST, Flow, Segments
from passes.partition.granularity import Granularity, Named, check_granularity

ENOUGH_LAYERS = 8
"""Number of layers that is enough: with fewer, wider cuts are tried."""


def partition(
    captured: Captured, shapes: Shapes, max_cut: int | None = None, granularity: Granularity = "minimal"
) -> Partition:
    """Find the local layers of a network.

    Args:
        captured: The graph.
        shapes: Its shapes and costs.
        max_cut: Live tensors that may cross a cut. None takes the smallest number up to 16 that gives at least 8
            layers, none of which holds more than half of the MACs; where none does, layers of at most half of the MACs
            are enough, or else the largest as small as can be.
        granularity: ``"minimal"``; ``"block"``, which keeps the blocks that the network lists (its transformer blocks)
            whole; a module class, or several, whose modules stay whole; or the names of the modules after which to cut.

    Raises:
        PartitionError: Nothing is trainable, or the model is one indivisible unit with its classifier, or ``max_cut``
            or ``granularity`` cannot be met.

    >>> from torch import nn
    >>> from passes.pipeline import analyse
    >>> model = nn.Sequential(
    ...     nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    ... )
    >>> result = analyse(model, (2, 3, 16, 16)).partition
    >>> [(layer.name, str(layer.output)) for layer in result.layers]
    [('0', '8x14x14'), ('2', '8x12x12')]
    >>> print(result.candidates[1])
    after 1 (1 tensor): cut, layer 0 ends here
    >>> print(result.candidates[3])
    after 3 (1 tensor): not cut: what follows is the classifier: the last mixing operation and all after it
    """
    if max_cut is not None and (not isinstance(max_cut, int) or isinstance(max_cut, bool) or max_cut < 1):
        raise PartitionError(
            f"max_cut must be an integer >= 1, got {max_cut!r}", remedy="Leave it out to let the compiler choose"
        )
    wanted = check_granularity(granularity)
    if not any(p.requires_grad for p in captured.model.parameters()):
        raise PartitionError(
            "the model has no trainable parameter",
            where=type(captured.model).__name__,
            remedy="Set requires_grad on the parameters that should learn",
        )
    flow = Flow(captured, shapes)
    if isinstance(wanted, Named):
        cutter = Cutter(flow, max_cut or WIDEST, wanted)
        return _assemble(cutter, cutter.named())
    best: tuple[float, Cutter, Choice] | None = None
    for width in (max_cut,) if max_cut else range(1, WIDEST + 1):
        cutter = Cutter(flow, width, wanted)
        choice = cutter.choose()
        share = _largest_share(cutter.segments, choice.cuts) if choice.cuts else 2.0
        enough = len(choice.cuts) >= ENOUGH_LAYERS and share <= 0.5
        # The narrowest width counts unless one layer holds more than half of the MACs: then a wider one may be better.
        if enough or best is None or (share < best[0] and best[0] > 0.5):
            best = share, cutter, choice
        if enough:
            break
    # Where no width is enough, `best` has layers of at most half of the MACs, or else the largest as small as can be.
    assert best is not None
    if not best[2].cuts:
        raise _nothing_to_cut(best[1], best[2])
    return _assemble(best[1], best[2])


def partition_again(captured: Captured, shapes: Shapes, like: Partition) -> Partition:
    """Partition a network like another one of the same graph, node for node, whose layers have other weights.

    Args:
        captured: The graph.
        shapes: Its shapes and costs.
        like: The partition of the other network.
    """
    nodes = [[captured.by_name[name] for name in names] for names in (*like.nodes, like.classifier)]
    carried = tensors_behind(captured, frozenset(like.shared))
    layers = tuple(
        _layer(shapes, captured, carried, index, layer.name, nodes[index], like.entries[index], like.live[index])
        for index, layer in enumerate(like.layers)
    )
    return replace(
        like,
        layers=layers,
        classifier_params=_count(captured, nodes[-1], carried),
        classifier_macs=sum(shapes.costs[n.name].macs for n in nodes[-1]),
    )


def _nothing_to_cut(cutter: Cutter, choice: Choice) -> PartitionError:
    """Return the error for a model without a cut, with the reason that most of its borders have."""
    where = type(cutter.captured.model).__name__
    if len(cutter.mixing) >= 2:
        refusals = [border.refusal for border in candidates(cutter, choice) if border.refusal is not None]
        inside = Counter(refusal for refusal in refusals if refusal.kind not in ("start", "classifier"))
        why, option = "all of its mixing operations belong to the classifier", ""
        if inside:
            refusal, count = inside.most_common(1)[0]
            why = f"of {inside.total()} borders between two operations, {count} cannot be cut because {refusal.reason}"
            option = f"{refusal.option}, or train it" if refusal.option else ""
        return PartitionError(
            "the model cannot be cut before its classifier",
            where=where,
            why=why,
            remedy=f"Give {option} with method='bp'" if option else "Train it with method='bp'",
        )
    return PartitionError(
        "the model has no layer before its classifier that could be trained locally",
        where=where,
        why=f"no point that at most {cutter.width} tensors cross separates two of its convolutions, linear layers or "
        "attentions",
        remedy="Train it with method='bp'" if cutter.mixing else "A convolution or linear layer is needed",
    )


def _members(segments: Segments, cuts: Sequence[Cut]) -> list[list[fx.Node]]:
    """Return the nodes of each layer, and of the classifier last."""
    ends = [cut.index for cut in cuts]
    members: list[list[fx.Node]] = [[] for _ in range(len(cuts) + 1)]
    for node in segments.flow.nodes[1:]:
        if node.name in segments.index:
            members[bisect_left(ends, segments.index[node.name])].append(node)
    return members


def _largest_share(segments: Segments, cuts: Sequence[Cut]) -> float:
    """Return the share of all MACs that the largest layer, or the classifier, has."""
    costs = segments.flow.shapes.costs
    macs = [sum(costs[n.name].macs for n in nodes) for nodes in _members(segments, cuts)]
    return max(macs) / max(1, sum(macs))


def _assemble(cutter: Cutter, choice: Choice) -> Partition:
    """Return the partition that a choice of cuts makes."""
    captured, shapes, segments, cuts = cutter.captured, cutter.shapes, cutter.segments, choice.cuts
    members = _members(segments, cuts)
    carried = tensors_behind(captured, segments.shared)
    names = [cut.name or name for cut, name in zip(cuts, _names(captured, shapes, members), strict=True)]
    entries = tuple(_entries(segments, members))
    live = tuple((cut.value, *(name for name in segments.borders[cut.index].live if name != cut.value)) for cut in cuts)
    layers = tuple(
        _layer(shapes, captured, carried, index, names[index], nodes, entries[index], live[index])
        for index, nodes in enumerate(members[:-1])
    )
    return Partition(
        layers=layers,
        nodes=tuple(tuple(n.name for n in nodes) for nodes in members[:-1]),
        live=live,
        entries=entries,
        classifier=tuple(n.name for n in members[-1]),
        classifier_params=_count(captured, members[-1], carried),
        classifier_macs=sum(shapes.costs[n.name].macs for n in members[-1]),
        shared=tuple(n.name for n in captured.nodes if n.name in segments.shared and n.op != "output"),
        portable=segments.portable,
        candidates=candidates(cutter, choice),
    )


def _entries(segments: Segments, members: Sequence[Sequence[fx.Node]]) -> Iterator[str]:
    """Yield, for each layer, the newest tensor that it reads of those computed before it."""
    order, tensors = segments.flow.order, segments.flow.tensors
    for nodes in members[:-1]:
        own = {n.name for n in nodes}
        read = {p.name for n in nodes for p in n.all_input_nodes if p.name in tensors and p.name not in own}
        assert read, "a layer depends on the input through what comes before it"
        yield max(read, key=order.__getitem__)


def _layer(
    shapes: Shapes,
    captured: Captured,
    carried: Mapping[str, list[torch.Tensor]],
    index: int,
    name: str,
    nodes: Sequence[fx.Node],
    entry: str,
    live: Sequence[str],
) -> Layer:
    source, result = shapes.specs[entry], shapes.specs[live[0]]
    assert source is not None and result is not None
    specs = [spec for n in nodes if (spec := shapes.specs[n.name]) is not None]
    return Layer(
        index=index,
        name=name,
        params=_count(captured, nodes, carried),
        macs=sum(shapes.costs[n.name].macs for n in nodes),
        activation_bytes=sum(spec.bytes_per_sample for spec in specs),
        input=source,
        output=result,
        width=len(live),
    )


def _count(captured: Captured, nodes: Sequence[fx.Node], carried: Mapping[str, list[torch.Tensor]]) -> int:
    """Return the number of parameter elements that nodes use; a parameter that several of them use counts once."""
    sizes = {
        id(t): t.numel()
        for n in nodes
        for t in [*own_tensors(captured, n), *(t for p in n.all_input_nodes for t in carried.get(p.name, []))]
        if isinstance(t, nn.Parameter)
    }
    return sum(sizes.values())


def _names(captured: Captured, shapes: Shapes, members: Sequence[Sequence[fx.Node]]) -> list[str]:
    """Return a name for each layer.

    The name is that of the outermost module whose mixing operations are exactly the layer's; else of the first leaf
    module that mixes.
    """
    mixing = [[n for n in group if shapes.costs[n.name].mixing] for group in members]
    inside: Counter[int] = Counter(call for group in mixing for n in group for call in enclosing(captured, n.name))
    names = []
    for group in mixing[:-1]:
        common = frozenset.intersection(*(enclosing(captured, n.name) for n in group))
        own = sorted(call for call in common if inside[call] == len(group))
        leaf = str(group[0].target) if group[0].op == "call_module" else captured.scope_path(group[0].name)
        names.append(captured.calls[own[0]].path if own else leaf or group[0].name)
    return names
