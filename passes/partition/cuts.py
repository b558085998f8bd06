"""The choice of cuts: at which of the borders between two consecutive mixing operations one layer ends.

Each border that is not chosen gets a :class:`~passes.ir.Refusal`, so that a user can see why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import fx, nn

from passes.common.inplace import mutates_input
from passes.common.parameters import own_tensors, uses
from passes.errors import PartitionError
from passes.ir import Captured, Refusal, RefusalKind, Shapes, TensorSpec
from passes.partition.building_blocks import BuildingBlocks, Span
from passes.partition.flow import Border, Flow, Segments
from passes.partition.granularity import Granularity, Named, named_borders, path_after, whole_spans
from passes.partition.output_choice import fusion_points

Rank = tuple[bool, int, int]
"""Of a border that could be a cut, the larger the better: nothing that crosses it is overwritten later; minus the
number of tensors that cross; modules that control leaves or enters there."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A border that was chosen."""

    index: int
    """Index among :attr:`Segments.borders`: the segment that ends here."""
    value: str
    """The tensor that auxiliary networks read: the newest whose channels are known."""
    name: str | None = None
    """The user's name for the layer that ends here."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The cuts of a network, and the reasons why its other narrow borders are none."""

    cuts: tuple[Cut, ...]
    """From input to output; empty where the network cannot be cut."""
    refusals: Mapping[int, Refusal]
    """Index of a border -> why it is no cut."""


class Cutter:
    """Chooses where, between two mixing operations, one layer ends and the next begins.

    Args:
        flow: The tensors of the network, and all its borders.
        width: Tensors that may cross a cut.
        granularity: What the user wants to be a layer.
    """

    def __init__(self, flow: Flow, width: int, granularity: Granularity | Named) -> None:
        self.captured, self.shapes, self.width, self.granularity = flow.captured, flow.shapes, width, granularity
        self.segments = flow.segments(width)
        costs, index = self.shapes.costs, self.segments.index
        # What only further outputs need says nothing about building blocks: an auxiliary FCN head, which lies in one
        # segment, must not keep the main head, of the same class, from being cut.
        trunk = [name for name in index if name not in flow.aside]
        self.mixing_nodes = frozenset(name for name in trunk if costs[name].mixing)
        self.mixing = sorted({index[name] for name in self.mixing_nodes})
        """Segments that hold a mixing operation."""
        self.depthwise = {index[name] for name in trunk if costs[name].depthwise}
        self.flat = _flat_start(self.segments, self.shapes)
        """The first border after which nothing has height and width."""
        self.head = _classifier_start(self.flat, self.mixing)
        """The segment whose mixing operations are the first of the classifier."""
        if self.captured.joint and self.mixing:
            fused = [i for name in fusion_points(flow) if (i := index[name]) >= self.mixing[0]]
            self.head = min([self.head, *(max(i for i in self.mixing if i <= f) for f in fused)])
        self.tied = parameter_spans(self.captured, self.segments)
        self.first: dict[int, str] = {}
        """Segment -> its first node."""
        for node in flow.nodes:
            if node.name in index:
                self.first.setdefault(index[node.name], node.name)

    @property
    def whole(self) -> list[Span]:
        """Modules that the user's granularity keeps whole."""
        return whole_spans(self._blocks(), self.granularity)

    def _blocks(self) -> BuildingBlocks:
        return BuildingBlocks(self.captured, self.segments, self.mixing_nodes, self.width)

    def choose(self) -> Choice:
        """Choose the cuts: between two consecutive mixing operations the best border, or none where all are refused."""
        if len(self.mixing) < 2:
            return Choice((), {})
        barred = self._barred()
        cuts: list[Cut] = []
        refusals = {i: NO_MIXING_BEFORE for i in range(self.mixing[0])}
        end = self.mixing[0]
        for before, after in pairwise(self.mixing):
            if before >= self.head:
                break
            # The classifier takes over before space is gone: its pooling is its own.
            end = after if after < self.head else max(before, min(after, self.flat) - 1) + 1
            cut, refused = self._best(range(before, end), cuts[-1].index + 1 if cuts else 0, barred)
            refusals |= refused
            if cut is not None:
                cuts.append(cut)
        refusals |= {i: self.in_classifier() for i in range(end, len(self.segments.borders))}
        return Choice(tuple(cuts), refusals)

    def named(self) -> Choice:
        """Return the cuts that the user named.

        Raises:
            PartitionError: One of them is not possible.
        """
        assert isinstance(self.granularity, Named)
        cuts = []
        for name, index in named_borders(self.segments, self.granularity, self.mixing, self.tied):
            value = self._value(index, 0)
            if value is None:
                raise PartitionError(f"no tensor after {name!r} can be read by an auxiliary network", where=name)
            cuts.append(Cut(index, value, name))
        tied = self._bars("tied", self.tied)
        refusals = {i: tied.get(i) or self._not_named(i) for i in range(len(self.segments.borders))}
        refusals |= {i: NO_MIXING_BEFORE for i in range(self.mixing[0])}
        refusals |= {i: self.in_classifier() for i in range(self.mixing[-1], len(self.segments.borders))}
        return Choice(tuple(cuts), {i: why for i, why in refusals.items() if all(cut.index != i for cut in cuts)})

    def _not_named(self, index: int) -> Refusal:
        if self._value(index, 0) is None:
            return self._unreadable(index, 0)
        return Refusal("not named", "granularity names other modules to cut after", self._naming(index))

    def _naming(self, index: int) -> str:
        """Return the ``granularity=`` that asks for a cut at a border, or "" where no name leads to it."""
        border = self.segments.borders[index]
        node = self.captured.nodes[border.position]
        path = path_after(self.captured, node) if node.name in border.live else None
        return f"granularity=[..., {path!r}]" if path else ""

    # Refusals ---------------------------------------------------------------------------------------------------------

    def _barred(self) -> dict[int, Refusal]:
        """Return the borders inside what stays whole; for each the reason that is hardest to lift."""
        blocks = self._blocks()
        return {
            **self._bars("block", blocks.indivisible()),
            **self._bars("granularity", whole_spans(blocks, self.granularity)),
            **self._bars("tied", self.tied),
        }

    def _bars(self, kind: RefusalKind, spans: Sequence[Span]) -> dict[int, Refusal]:
        return {i: self.inside(kind, span) for span in spans for i in range(span.first, span.last)}

    def inside(self, kind: RefusalKind, span: Span) -> Refusal:
        """Return the refusal of a border inside a span."""
        if kind == "tied":
            return Refusal(kind, f"{span.subject} is used before and after it")
        if kind == "granularity":
            return Refusal(kind, f"granularity keeps {span.subject} whole", "granularity='minimal'")
        option = f"max_cut={span.needed}" if span.needed > self.width else ""
        if span.because == span.subject:
            return Refusal(kind, f"{span.subject} cannot be cut", option)
        return Refusal(kind, f"{span.subject} is kept whole, as {span.because} of its kind cannot be cut", option)

    def in_classifier(self) -> Refusal:
        """Return the refusal of a border that lies in the classifier."""
        if self.head == self.mixing[-1]:
            return Refusal("classifier", "what follows is the classifier: the last mixing operation and all after it")
        if self.captured.joint:
            return Refusal("classifier", "what follows is the classifier, which begins where outputs are fused")
        return Refusal("classifier", "what follows is the classifier, which begins where height and width are gone")

    def _unreadable(self, index: int, since: int) -> Refusal:
        """Return the refusal of a border where no tensor of the layer can be read."""
        live = self.segments.borders[index].live
        own = [name for name in live if self.segments.index[name] >= since]
        if not own:
            reason = "no tensor of the layer crosses it"
        elif not any(mergeable(self.shapes, name) for name in own):
            reason = f"{own[0]} does not hold a value for each sample in its first dimension"
        elif all(_layout(self.shapes, name) == "other" for name in own):
            reason = f"it is not known which dimension of {own[0]} holds channels"
        else:
            reason = f"{own[0]} has lost its positions, and the network's output has positions"
        return Refusal("unreadable", f"no auxiliary network could read what crosses: {reason}")

    # The choice between two mixing operations -------------------------------------------------------------------------

    def _best(
        self, positions: range, start: int, barred: Mapping[int, Refusal]
    ) -> tuple[Cut | None, dict[int, Refusal]]:
        """Choose among the borders between two mixing operations.

        Args:
            positions: Indices of the borders; the first ends the segment of the earlier mixing operation.
            start: First segment of the layer that would end here.
            barred: Borders inside what stays whole.

        Returns:
            The cut, or None where all borders are refused; and the refusals of all others.
        """
        ranked: list[tuple[Rank, int, str]] = []
        refused: dict[int, Refusal] = {}
        for i in positions:
            # A depthwise convolution goes with the pointwise one after it, so no border may come between them.
            if i > positions.start and i in self.depthwise:
                why = f"the depthwise convolution in {self._place(i)} goes with the mixing operation after it"
                refused |= {later: Refusal("depthwise", why) for later in range(i, positions.stop)}
                break
            value = self._value(i, positions.start)
            if i in barred:
                refused[i] = barred[i]
            elif value is None:
                refused[i] = self._unreadable(i, positions.start)
            elif not self._covers(i, start):
                why = "a parameter of the layer reaches no tensor here that an auxiliary network could read"
                refused[i] = Refusal("unreached", why)
            else:
                ranked.append((self._rank(i), i, value))
        if not ranked:
            return None, refused
        # The latest among equals: norms and activations stay with the mixing operation before them.
        best, index, value = max(ranked)
        refused |= {i: self._outranked(i, rank, index, best) for rank, i, _ in ranked if i != index}
        return Cut(index, value), refused

    def _rank(self, index: int) -> Rank:
        border = self.segments.borders[index]
        last = self.captured.nodes[border.position].name
        # Control leaves the calls around the last node and enters those around the next: the symmetric difference.
        crossed = enclosing(self.captured, last) ^ enclosing(self.captured, self.first[index + 1])
        return self._overwriting(border) is None, -len(border.live), len(crossed)

    def _outranked(self, index: int, rank: Rank, best: int, best_rank: Rank) -> Refusal:
        """Return the refusal of a border that could be a cut, if another were not better."""
        there = f"the cut after {self._place(best)}"
        if rank[0] != best_rank[0]:
            node = self._overwriting(self.segments.borders[index])
            assert node is not None
            why = f"{place(self.captured, node)} overwrites in place what crosses; {there} is better"
            return Refusal("overwritten", why, self._naming(index))
        if rank[1] != best_rank[1]:
            why = "fewer tensors cross there"
        elif rank[2] != best_rank[2]:
            why = "more modules end or begin there"
        else:
            why = "it is the latest"
        reason = f"no mixing operation lies between it and {there}, which is better: {why}"
        return Refusal("another", reason, self._naming(index))

    def _place(self, index: int) -> str:
        """Return the last node before a border, in words."""
        return place(self.captured, self.captured.nodes[self.segments.borders[index].position])

    def _value(self, index: int, since: int) -> str | None:
        """Return the newest tensor at a border, of segment ``since`` or later, that an auxiliary network can read."""
        for name in self.segments.borders[index].live:
            if self.segments.index[name] >= since and self._readable(name):
                return name
        return None

    def _readable(self, name: str) -> bool:
        """Return whether a prediction for each sample can be made of a tensor."""
        # Not where we cannot name the channels (inside a channel shuffle), or where samples are taken apart (windows).
        spec = self.shapes.specs[name]
        if spec is None or spec.layout == "other" or not mergeable(self.shapes, name):
            return False
        # Nor where positions are averaged away (a squeeze-excite) while the output is a map.
        return _is_map(spec) or not _is_map(self.shapes.output)

    def _covers(self, index: int, start: int) -> bool:
        """Return whether every parameter of the layer that ends at a border reaches a tensor that can be read.

        Tensors whose first dimension holds no samples (windows of an image) cannot be read: a parameter that reaches
        these alone would get no gradient.
        """
        segments, graph = self.segments, self.segments.flow.graph
        own = [name for name in segments.borders[index].live if segments.index[name] >= start]
        hidden = [name for name in own if _is_float(self.shapes, name) and not mergeable(self.shapes, name)]
        if not hidden:
            return True

        def parameters(names: list[str]) -> set[int]:
            reached = set(names)
            pending = list(names)
            while pending:
                for parent in graph.predecessors(pending.pop()):
                    if parent not in reached and segments.index[parent] >= start:
                        reached.add(parent)
                        pending.append(parent)
            nodes = (self.captured.by_name[name] for name in reached)
            return {
                id(t) for node in nodes for p in (node, *node.all_input_nodes) for t in own_tensors(self.captured, p)
            }

        return parameters(hidden) <= parameters([name for name in own if name not in hidden])

    def _overwriting(self, border: Border) -> fx.Node | None:
        """Return the first node after a border that overwrites in place what crosses it."""
        order = self.segments.flow.order
        later = (u for name in border.live for u in self.captured.by_name[name].users)
        overwriting = [u for u in later if order.get(u.name, -1) > border.position and mutates_input(self.captured, u)]
        return min(overwriting, key=lambda node: order[node.name], default=None)


NO_MIXING_BEFORE = Refusal("start", "no convolution, linear layer or attention comes before it")


def place(captured: Captured, node: fx.Node) -> str:
    """Return a node in words: the leaf module it calls, or its own name and the module in whose forward it stands."""
    if node.op == "call_module":
        return str(node.target)
    path = captured.scope_path(node.name)
    return f"{node.name} in {path}" if path else node.name


def _layout(shapes: Shapes, name: str) -> str:
    spec = shapes.specs[name]
    return "other" if spec is None else spec.layout


def _is_map(spec: TensorSpec) -> bool:
    return any(size > 1 for size in spec.spatial)


def _is_float(shapes: Shapes, name: str) -> bool:
    spec = shapes.specs[name]
    return spec is not None and spec.dtype.is_floating_point


def mergeable(shapes: Shapes, name: str) -> bool:
    """Return whether an auxiliary network can read a value: floats, with the input's samples in the first dimension."""
    spec = shapes.specs[name]
    return spec is not None and spec.dtype.is_floating_point and spec.shape[:1] == shapes.input.shape[:1]


def _flat_start(segments: Segments, shapes: Shapes) -> int:
    """Return the index of the first border after which nothing has height and width.

    The number of borders where even the last one has them.
    """
    start = len(segments.borders)
    while start > 0:
        specs = [shapes.specs[name] for name in segments.borders[start - 1].live]
        if any(spec is None or any(size > 1 for size in spec.spatial) for spec in specs):
            break
        start -= 1
    return start


def _classifier_start(flat: int, mixing: Sequence[int]) -> int:
    """Return the first segment whose mixing operations belong to the classifier.

    Args:
        flat: Index of the first border after which nothing has height and width.
        mixing: Segments that hold a mixing operation, in order.
    """
    if not mixing or flat >= mixing[-1] or flat < mixing[0]:
        return mixing[-1] if mixing else 0
    return next(i for i in mixing if i > flat)


def parameter_spans(captured: Captured, segments: Segments) -> list[Span]:
    """Return the span of every parameter, and of every buffer of a module, that more than one segment uses."""
    spans = []
    names: dict[int, str] = {}
    for tensor, users in uses(captured, segments.shared, segments.portable).items():
        indices = [segments.index[name] for name in users]
        if min(indices) < max(indices):
            names = names or _tensor_names(captured.model)
            positions = [captured.positions[name] for name in users]
            span = Span(
                first=min(indices),
                last=max(indices),
                start=min(positions),
                stop=max(positions),
                subject=names.get(tensor, "a parameter"),
            )
            spans.append(span)
    return sorted(spans, key=lambda span: (span.start, span.subject))


def _tensor_names(model: nn.Module) -> dict[int, str]:
    return {id(tensor): name for name, tensor in (*model.named_buffers(), *model.named_parameters())}


def enclosing(captured: Captured, name: str) -> frozenset[int]:
    """Return the indices of the calls that a node stands in."""
    around = []
    index = captured.scopes[name]
    while index >= 0:
        around.append(index)
        index = captured.calls[index].parent
    return frozenset(around)
