"""A model run in two ways, as it is and as its captured graph, with fingerprints of all that happens."""

from __future__ import annotations

import contextlib
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from passes.capture.fingerprint import digest, fingerprint, generators, python_state
from passes.common.interpreter import Interpreter
from passes.common.restore import same_randomness, set_mode, untouched
from passes.errors import first_line
from passes.ir import Call, Captured

SEED = 20240229
"""Where random number generators start in both runs."""


def replay(captured: Captured, x: torch.Tensor) -> tuple[Any, ...]:
    """Run a captured graph and return the values of ``captured.result`` and ``captured.heads``, in order."""
    result = Interpreter(captured.model, captured.constants).run(captured.graph, x)
    return captured.primary_first(result)


@dataclass(slots=True)
class Trace:
    """Everything that one way of running the model computed."""

    values: list[object] = field(default_factory=list)
    """Values that the model returned, pass by pass."""
    state: object = None
    """Fingerprint of the random generators and of all buffers at the end."""
    calls: dict[str, list[tuple[object, object]]] = field(default_factory=lambda: defaultdict(list))
    """Path of a module -> fingerprints before and after each of its calls."""
    passes: int = 1
    """Number of forward passes."""
    error: Exception | None = None
    failed: int | None = None
    """Position of the node that failed."""

    def same(self, other: Trace) -> bool:
        """Return whether both runs agree bit for bit; calls that only the other one watched do not count."""
        if self.error is not None or other.error is not None:
            return False
        return (
            digest(self.values) == digest(other.values)
            and self.state == other.state
            and all(mine == other.calls[path] for path, mine in self.calls.items())
        )


@contextlib.contextmanager
def _staged(captured: Captured, trace: Trace) -> Iterator[None]:
    """Run the model from a fixed state in train mode, on copies of its buffers, and note the final state."""
    with untouched(captured.model), same_randomness(SEED), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        set_mode(captured.model, True)
        yield
        trace.state = generators(), digest(list(captured.model.buffers()))


def run_eager(captured: Captured, x: torch.Tensor, leaves: bool = False) -> Trace:
    """Run the model itself in train mode, twice if a pass changes its Python attributes.

    Args:
        captured: The model's graph, which says which modules are watched.
        x: The input.
        leaves: Whether leaf modules are watched too.
    """
    model, trace = captured.model, Trace()
    with _staged(captured, trace):
        _watch(captured, trace, leaves)
        state = python_state(model)
        try:
            results = [model(x.clone())]
            if python_state(model) != state:
                # The model counts something, and may do something else in its second pass.
                trace.passes = 2
                results.append(model(x.clone()))
        except Exception as error:
            trace.error = error
            return trace
        for result in results:
            try:
                trace.values += captured.structure.read(result)
            except ValueError as error:
                trace.values.append(first_line(error))
    return trace


def _watch(captured: Captured, trace: Trace, leaves: bool) -> None:
    watched = {call.path for call in captured.calls}
    if leaves:
        watched |= {str(node.target) for node in captured.nodes if node.op == "call_module"}
    before: list[object] = []

    def enter(module: nn.Module, args: object, kwargs: object) -> None:
        before.append(fingerprint(module, (args, kwargs)))

    for path, module in captured.model.named_modules():
        if path not in watched:
            continue

        def leave(module: nn.Module, args: object, kwargs: object, result: object, path: str = path) -> None:
            trace.calls[path].append((before.pop(), fingerprint(module, result)))

        module.register_forward_pre_hook(enter, with_kwargs=True)
        module.register_forward_hook(leave, with_kwargs=True)


def run_graph(captured: Captured, x: torch.Tensor, passes: int, leaves: bool = False) -> Trace:
    """Run the graph as :func:`run_eager` runs the model, ``passes`` times."""
    trace = Trace(passes=passes)
    with _staged(captured, trace):
        for _ in range(passes):
            runner = _Recorder(captured, trace, leaves)
            try:
                result = runner.run(captured.graph, x.clone())
            except Exception as error:
                trace.error, trace.failed = error, runner.position
                break
            trace.values += captured.primary_first(result)
    return trace


class _Recorder(Interpreter):
    """Runs a graph and takes fingerprints where calls start and end."""

    def __init__(self, captured: Captured, trace: Trace, leaves: bool) -> None:
        super().__init__(captured.model, captured.constants)
        self.captured, self.trace, self.leaves = captured, trace, leaves
        self.position = -1
        self.before: dict[int, object] = {}
        self.starts: dict[int, list[int]] = defaultdict(list)
        self.ends: dict[int, list[int]] = defaultdict(list)
        for index, call in enumerate(captured.calls):
            self.starts[call.first].append(index)
            if call.last >= call.first:
                self.ends[call.last].insert(0, index)  # what is inside ends first

    def dead_after(self, graph: fx.Graph) -> Mapping[fx.Node, list[fx.Node]]:
        """Return, for each node, the nodes that neither a later node nor a later fingerprint reads."""
        captured = self.captured
        last = {
            node: captured.positions[reader.name]
            for reader, nodes in super().dead_after(graph).items()
            for node in nodes
        }
        for call in captured.calls:
            for node in _nodes_in((call.args, call.kwargs)):
                last[node] = max(last[node], call.first)
            for node in _nodes_in(call.result):
                last[node] = max(last[node], call.first, call.last)
        later: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        for node, position in last.items():
            later[captured.nodes[position]].append(node)
        return later

    def run_node(self, node: fx.Node) -> object:
        """Run a node; take the fingerprints of the calls that start or end with it."""
        position = self.position = self.captured.positions[node.name]
        for index in self.starts[position]:
            call = self.captured.calls[index]
            self.before[index] = self._print(call, (call.args, call.kwargs))
            if call.last < call.first:
                self._leave(index)
        leaf = self.captured.module(node) if self.leaves else None
        before = fingerprint(leaf, (node.args, node.kwargs), self.values) if leaf is not None else None
        self.values[node] = value = super().run_node(node)
        if leaf is not None:
            self.trace.calls[str(node.target)].append((before, fingerprint(leaf, value)))
        for index in self.ends[position]:
            self._leave(index)
        return value

    def _leave(self, index: int) -> None:
        call = self.captured.calls[index]
        self.trace.calls[call.path].append((self.before.pop(index), self._print(call, call.result)))

    def _print(self, call: Call, value: object) -> object:
        return fingerprint(self.captured.model.get_submodule(call.path), value, self.values)


def _nodes_in(value: object) -> list[fx.Node]:
    if isinstance(value, fx.Node):
        return [value]
    if isinstance(value, fx.Proxy):
        return [value.node]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [node for item in items for node in _nodes_in(item)]
