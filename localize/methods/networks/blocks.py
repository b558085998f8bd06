"""Recomputation of activations in local layers and in the blocks of auxiliary networks.

Results, gradients and running statistics equal those of a plain run, bit for bit: the second run starts from the same
state of the random generators, and leaves running statistics alone. Cutting a block after its convolutions
(``"norms"``) saves the outputs of norms and activation functions without running a convolution again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import fx, nn

from passes.codegen.generate import returned
from passes.codegen.recompute import buffers_in, buffers_of, recomputed
from passes.common.inplace import overwritten
from passes.common.layer_kinds import DENSE, is_norm


class Piece(NamedTuple):
    """Generated code of a part of a network, with the names of the values that it reads and returns."""

    code: fx.GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    overwrites: frozenset[str]
    """Names of the ``inputs`` that the code changes in place."""

    def __call__(self, *values: Any) -> Any:
        """Run the code. Inputs that it changes in place are copied first, since it will run again."""
        return self.code(*[v.clone() if n in self.overwrites else v for n, v in zip(self.inputs, values, strict=True)])


class Recomputed:
    """Pieces of a network that run in turn and keep only the tensors that cross between them.

    Args:
        pieces: Consecutive pieces.
        inputs: Names of the values that the whole is called with.
        outputs: Names of the values that the whole returns.
    """

    def __init__(self, pieces: Sequence[Piece], inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self.pieces, self.inputs, self.outputs = tuple(pieces), tuple(inputs), tuple(outputs)
        self._statistics = [buffers_of(piece.code) for piece in self.pieces]
        self._last = {name: i for i, piece in enumerate(self.pieces) for name in piece.inputs}

    def __call__(self, *values: Any) -> Any:
        """Run the pieces; return one output as it is, several as a tuple."""
        held = dict(zip(self.inputs, values, strict=True))
        for i, (piece, statistics) in enumerate(zip(self.pieces, self._statistics, strict=True)):
            result = recomputed(piece.__call__, [held[name] for name in piece.inputs], statistics)
            for name in piece.inputs:
                if self._last[name] == i and name not in self.outputs:
                    held.pop(name, None)
            held.update(zip(piece.outputs, returned(piece.outputs, result), strict=True))
            del result
        results = tuple(held[name] for name in self.outputs)
        return results[0] if len(results) == 1 else results


class AuxiliaryBlocks(nn.Sequential):
    """An auxiliary network: blocks that run in turn, the last of which returns the prediction.

    The compiler can make it compute activations inside its blocks again (:meth:`recompute`).
    """

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__(*blocks)
        # By name of a block, what runs in its place; not a module itself, since it calls the block's own modules.
        self._leaner: dict[str, Callable[[Any], Any]] = {}

    def forward(self, x: Any) -> Any:
        """Run the blocks in turn."""
        for name, block in self.named_children():
            x = self._leaner.get(name, block)(x)
        return x

    @property
    def recomputes(self) -> bool:
        """True where a block computes activations again."""
        return bool(self._leaner)

    def recompute(self, *, norms: bool) -> None:
        """Compute activations inside blocks again in the backward pass, from now on.

        Blocks without submodules, and the last block, keep all activations.

        Args:
            norms: Whether to compute only outputs of norms and activation functions again, which costs no convolution;
                else everything inside a block.
        """
        for name, block in list(self.named_children())[:-1]:
            if norms and isinstance(block, fx.GraphModule):
                self._leaner[name] = _without_norms(block)
            elif block._modules and not norms:
                self._leaner[name] = _Whole(block)


def recompute_blocks(network: nn.Module, *, norms: bool) -> None:
    """Apply :meth:`AuxiliaryBlocks.recompute` to every :class:`AuxiliaryBlocks` in an auxiliary network."""
    for part in network.modules():
        if isinstance(part, AuxiliaryBlocks):
            part.recompute(norms=norms)


class _Whole:
    """A block of which no inner activation is kept."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.statistics = buffers_in(block)

    def __call__(self, x: Any) -> Any:
        return recomputed(self.block, [x], self.statistics)


def _without_norms(block: fx.GraphModule) -> Recomputed:
    """Return a block as pieces that each end in a convolution or linear layer, which the second run need not compute.

    Norms run where they are first needed, so that their outputs need not cross from one piece to the next.
    """
    nodes = _norms_late(block, _opened(block))
    (x,) = (node for node in nodes if node.op == "placeholder")
    (output,) = (node for node in nodes if node.op == "output")
    inner = [node for node in nodes if node not in (x, output)]
    groups: list[list[fx.Node]] = [[]]
    for node in inner:
        groups[-1].append(node)
        if _is_mixing(block, node):
            groups.append([])
    pieces = [_piece(block, group) for group in groups if group]
    (result,) = output.all_input_nodes
    return Recomputed(pieces, (x.name,), (result.name,))


def _opened(block: fx.GraphModule) -> fx.Graph:
    """Return the graph of a block, with each ``nn.Sequential`` replaced by its members."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}

    def call(path: str, value: fx.Node) -> fx.Node:
        module = block.get_submodule(path)
        if type(module) is not nn.Sequential:
            return graph.call_module(path, (value,))
        for name in module._modules:
            value = call(f"{path}.{name}", value)
        return value

    for node in block.graph.nodes:
        if node.op == "call_module" and not node.kwargs and len(node.args) == 1 and isinstance(node.args[0], fx.Node):
            values[node] = call(str(node.target), values[node.args[0]])
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
    return graph


def _norms_late(block: fx.GraphModule, graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes of a block's graph, each norm right before the first node that uses it."""
    order: list[fx.Node] = []
    waiting: set[fx.Node] = set()

    def place(node: fx.Node) -> None:
        for parent in node.all_input_nodes:
            if parent in waiting:
                waiting.discard(parent)
                place(parent)
        order.append(node)

    for node in graph.nodes:
        if node.op == "call_module" and is_norm(block.get_submodule(str(node.target))):
            waiting.add(node)
        else:
            place(node)
    return order


def _is_mixing(block: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(block.get_submodule(str(node.target)), DENSE)


class _ModulesOf(NamedTuple):
    block: fx.GraphModule

    def module(self, node: fx.Node) -> nn.Module | None:
        return self.block.get_submodule(str(node.target)) if node.op == "call_module" else None


def _piece(block: fx.GraphModule, nodes: Sequence[fx.Node]) -> Piece:
    graph = fx.Graph()
    inside = set(nodes)
    entering = list(dict.fromkeys(p for n in nodes for p in n.all_input_nodes if p not in inside))
    leaving = [node for node in nodes if any(user not in inside for user in node.users)]
    values = {node: graph.placeholder(node.name) for node in entering}
    for node in nodes:
        values[node] = graph.node_copy(node, values.__getitem__)
    results = tuple(values[node] for node in leaving)
    graph.output(results[0] if len(results) == 1 else results)
    code = fx.GraphModule(block, graph)
    names = tuple(node.name for node in entering)
    return Piece(code, names, tuple(n.name for n in leaving), overwritten(_ModulesOf(block), names, nodes))
