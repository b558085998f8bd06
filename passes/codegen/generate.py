"""Code generation: a set of nodes -> a GraphModule that calls the user's own modules.

A call whose nodes all lie in the set becomes one ``call_module``: the user's module runs its own forward, with its
hooks, its train/eval behaviour and its Python control flow. Only the operations between such modules are written out.

Nothing is dropped but reads of attributes: fx's dead-code elimination also drops in-place calls whose result nobody
uses, and outputs then change without an error. GraphModules are built again from a plan, never pickled or copied,
because unpickling one traces its source again.
"""

from __future__ import annotations

import keyword
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import fx

from passes.codegen.relu import frugal_relu, spares_its_gradient
from passes.common.inplace import mutates_input
from passes.ir import Call, Captured

PRIMARY = "primary"
"""Name of the submodule of generated code that is the user's model."""


def generate(
    captured: Captured,
    members: Collection[str],
    shared: Collection[str],
    inputs: Sequence[str],
    outputs: Sequence[str],
    name: str,
) -> fx.GraphModule:
    """Build a module that computes ``outputs`` from ``inputs`` by running ``members``.

    Args:
        captured: The graph, and the model whose modules the code calls.
        members: Names of the nodes to run.
        shared: Names of nodes that do not depend on the input; those that are needed are run too.
        inputs: Names of the values passed in, in order.
        outputs: Names of the values returned: one by itself, several as a tuple.
        name: Class name of the module.

    Returns:
        A GraphModule whose submodule ``primary`` is the user's model itself, so that code sees what changes in it.
    """
    writer = _GraphWriter(captured, frozenset(members), frozenset(shared), inputs, outputs)
    graph = writer.write()
    root: dict[str, object] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            path = writer.aliases.get(str(node.target), str(node.target).removeprefix(f"{PRIMARY}."))
            root[str(node.target)] = captured.attribute(path)
    module = fx.GraphModule(root, graph, name)
    setattr(module, PRIMARY, captured.model)
    return module


def fits_code(path: str) -> bool:
    """Return whether code that torch generates can hold a path, as attributes and in quotes."""
    return path.isprintable() and not {'"', "\\"} & {*path} and not any(map(keyword.iskeyword, path.split(".")))


def opened(
    captured: Captured, members: Collection[str], shared: Collection[str], inputs: Sequence[str], outputs: Sequence[str]
) -> fx.Graph:
    """Return the graph of :func:`generate`, with every node written out as torch's own operation.

    Exports write code of their own from it. Arguments are those of :func:`generate`. Targets are paths in the user's
    model after ``primary.``, whatever their names.
    """
    return _GraphWriter(captured, frozenset(members), frozenset(shared), inputs, outputs, opened=True).write()


def returned(outputs: Sequence[str], result: Any) -> tuple[Any, ...]:
    """Return the result of generated code as a tuple with one value for each of its outputs."""
    return (result,) if len(outputs) == 1 else tuple(result)


class _GraphWriter:
    def __init__(
        self,
        captured: Captured,
        members: frozenset[str],
        shared: frozenset[str],
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        opened: bool = False,
    ) -> None:
        self.captured = captured
        self.opened = opened
        self.nodes = captured.nodes
        self.members = members
        self.inputs, self.outputs = inputs, outputs
        self.graph = fx.Graph()
        self.values: dict[str, fx.Node] = {}
        self.shared = shared
        self.aliases: dict[str, str] = {}
        """Alias -> path, for paths that generated code cannot hold."""
        kept = {name for name in shared if self._belongs_here(name)}
        self.wanted = members | kept | captured.feeding(members | kept, shared)
        self.visited = sorted(captured.positions[name] for name in self.wanted)
        within = () if opened else self._calls_within()
        self.folds = {call.first: call for call in reversed(within) if self._folds(call)}

    def _belongs_here(self, name: str) -> bool:
        """Return whether a node changes a tensor that does not depend on the input, and belongs to this code.

        Such a tensor is a counter, say. The node belongs to the code of the next node that depends on the input, or of
        the last one if there is no next.
        """
        node = self.captured.by_name[name]
        if not mutates_input(self.captured, node):
            return False
        start = self.captured.positions[name]
        others = (*self.nodes[start:-1], *reversed(self.nodes[1:start]))
        return next((n.name for n in others if n.name not in self.shared), None) in self.members

    def write(self) -> fx.Graph:
        for name in self.inputs:
            self.values[name] = self.graph.placeholder(name)
        done = -1
        for position in self.visited:
            call = self.folds.get(position)
            if position <= done:
                continue
            if call is not None:
                self._write_call(call)
                # The module's own forward runs everything up to here.
                done = call.last
            elif self.nodes[position].name not in self.values:
                self._write_node(self.nodes[position])
        results = tuple(self.values[name] for name in self.outputs)
        self.graph.output(results[0] if len(results) == 1 else results)
        self._drop_unused_constants()
        self.graph.lint()
        return self.graph

    def _calls_within(self) -> Sequence[Call]:
        """Return the calls that may lie in the set, which start within its extent; calls are sorted by their start."""
        calls = self.captured.calls
        if not self.visited:
            return ()
        first = bisect_left(calls, self.visited[0], key=lambda call: call.first)
        last = bisect_right(calls, self.visited[-1], key=lambda call: call.first)
        return [call for call in calls[first:last] if call.last <= self.visited[-1]]

    def _folds(self, call: Call) -> bool:
        """Return whether a call can become one node: all of it is wanted, and others use only what it returns."""
        if call.last < call.first or not isinstance(call.result, fx.Node):
            return False
        inside = {node.name for node in self.nodes[call.first : call.last + 1]}
        if not inside <= self.wanted | self.shared or call.result.name not in inside or not inside & self.members:
            return False
        # Reads of parameters may be used elsewhere too: they can be written again.
        leaking = (n for n in self.nodes[call.first : call.last + 1] if n is not call.result)
        if any(user.name not in inside for node in leaking if node.op != "get_attr" for user in node.users):
            return False
        if any(name in inside and name != call.result.name for name in self.outputs):
            return False
        return _plain((call.args, call.kwargs)) and all(self._at_hand(name) for name in call.given)

    def _at_hand(self, name: str) -> bool:
        # Also an argument that the module's inside does not use is passed to it, and may be out of reach.
        return name in self.wanted or name in self.inputs or self.captured.by_name[name].op == "get_attr"

    def _write_call(self, call: Call) -> None:
        args, kwargs = fx.map_arg((call.args, call.kwargs), self._value)
        assert isinstance(call.result, fx.Node)
        result = call.result.name
        self.values[result] = self.graph.create_node(
            "call_module", self._target(call.path), args, kwargs, call.path.replace(".", "_")
        )

    def _target(self, path: str) -> str:
        """Return the name of a module or tensor of the user's model in the code: an alias if code cannot hold it."""
        if self.opened:
            return f"{PRIMARY}.{path}"
        if fits_code(path):
            return f"{PRIMARY}.{path}"
        known = {own: alias for alias, own in self.aliases.items()}
        alias = known.get(path, f"{PRIMARY}_{len(known)}")
        self.aliases[alias] = path
        return alias

    def _write_node(self, node: fx.Node) -> None:
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._value)
        if not self.opened and spares_its_gradient(self.captured, node):
            module = self.graph.get_attr(self._target(str(node.target)))
            self.values[node.name] = self.graph.create_node(
                "call_function", frugal_relu, (module, *args), {}, node.name
            )
            return
        target = node.target
        if node.op == "call_module" or (node.op == "get_attr" and node.target not in self.captured.constants):
            target = self._target(str(node.target))
        self.values[node.name] = self.graph.create_node(node.op, target, args, kwargs, node.name)

    def _value(self, node: fx.Node) -> fx.Node:
        if node.name not in self.values:
            # A parameter that fx read once, inside a call that is now one node, and that is also used outside of it.
            self._write_node(node)
        return self.values[node.name]

    def _drop_unused_constants(self) -> None:
        # Anything else than a read of an attribute might change a tensor that is used later.
        for node in reversed(list(self.graph.nodes)):
            if node.op == "get_attr" and not node.users:
                self.graph.erase_node(node)


def _plain(value: Any) -> bool:
    """Return whether fx can write a value as an argument."""
    if isinstance(value, (fx.Node, int, float, bool, str, type(None), torch.dtype, torch.device)):
        return True
    if type(value) in (tuple, list):
        return all(_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(item) for key, item in value.items())
    return False
