"""The record of every border of a network: where it is cut, and why it is not cut anywhere else."""

from __future__ import annotations

from torch import fx

from passes.ir import Captured, CutCandidate, Refusal
from passes.partition.cuts import NO_MIXING_BEFORE, Choice, Cutter, place
from passes.partition.flow import Border


def candidates(cutter: Cutter, choice: Choice) -> tuple[CutCandidate, ...]:
    """Return all borders between two operations, from input to output, each with its decision.

    Args:
        cutter: The cutter that chose.
        choice: Its choice: refusals of the borders that few enough tensors cross.
    """
    captured, flow = cutter.captured, cutter.segments.flow
    index = {border.position: i for i, border in enumerate(cutter.segments.borders)}
    layers = {cut.index: layer for layer, cut in enumerate(choice.cuts)}
    following = dict(zip(flow.line, flow.line[1:], strict=False))
    too_wide = _TooWide(cutter)
    recorded = []
    # The first border is the input itself, the last one the output: neither lies between two operations.
    for border in flow.borders[:-1]:
        if border.position == 0:
            continue
        node = captured.nodes[border.position]
        before = captured.by_name[following[node.name]]
        i = index.get(border.position)
        layer = None if i is None else layers.get(i)
        refusal = None
        if layer is None:
            refusal = too_wide.refusal(border) if i is None else choice.refusals[i]
        recorded.append(
            CutCandidate(
                after=node.name,
                before=before.name,
                place=place(captured, node),
                path=_path(captured, node),
                next_place=place(captured, before),
                next_path=_path(captured, before),
                source=captured.sources.get(node.name),
                width=len(border.live),
                layer=layer,
                refusal=refusal,
            )
        )
    return tuple(recorded)


def _path(captured: Captured, node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else captured.scope_path(node.name)


class _TooWide:
    """The refusals of borders that the cutter never looked at, since too much crosses them."""

    def __init__(self, cutter: Cutter) -> None:
        self.cutter = cutter
        self.mixing = sorted(cutter.captured.positions[name] for name in cutter.mixing_nodes)
        borders = cutter.segments.borders
        space_ends = cutter.head < cutter.mixing[-1] and cutter.flat < len(borders)
        self.end = min(self.mixing[-1], borders[cutter.flat].position if space_ends else self.mixing[-1])
        """Position from which on all borders lie in the classifier."""
        self.whole = cutter.whole

    def refusal(self, border: Border) -> Refusal:
        """Return the reason that is hardest to lift: a wider ``max_cut`` alone may not be enough."""
        cutter, position = self.cutter, border.position
        if position < self.mixing[0]:
            return NO_MIXING_BEFORE
        if position >= self.end:
            return cutter.in_classifier()
        for span in reversed(cutter.tied):
            if span.start <= position < span.stop:
                return cutter.inside("tied", span)
        for span in self.whole:
            if span.start <= position < span.stop:
                return cutter.inside("granularity", span)
        if not border.tensors:
            return Refusal("no tensor", "a value that is not a tensor crosses it")
        width = len(border.live)
        return Refusal("wide", f"{width} tensors cross it, and at most {cutter.width} may", f"max_cut={width}")
