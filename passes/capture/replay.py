"""A model run in both ways: as it is, and as its captured graph, with fingerprints of all that happens."""

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


def replay(captured: Captured, x: torch.Tensor) -> tuple[Any, ...]:
    """Values of ``captured.result`` and ``captured.heads``, in order."""
    result = Interpreter(captured.model, captured.constants).run(captured.graph, x)
    return captured.primary_first(result)


@dataclass(slots=True)
class Record:
    """What one way of running the model gave."""

    values: list[Any] = field(default_factory=list)
    """What it returned, pass by pass."""
    state: Any = None
    """Fingerprint of the generators and of all buffers, at the end."""
    calls: dict[str, list[tuple[Any, Any]]] = field(default_factory=lambda: defaultdict(list))
    """For each module watched, and each time it was called, fingerprints before and after."""
    passes: int = 1
    error: Exception | None = None
    failed: int | None = None
    """The node whose running failed."""

    def same(self, other: Record) -> bool:
        """Whether both are the same, bit for bit."""
        if self.error is not None or other.error is not None:
            return False
        return (
            digest(self.values) == digest(other.values)
            and self.state == other.state
            and all(mine == other.calls[path] for path, mine in self.calls.items())
        )


@contextlib.contextmanager
def _staged(captured: Captured, record: Record) -> Iterator[None]:
    """One state to start from; the model in train mode, its buffers copies; the final state is recorded."""
    with untouched(captured.model), same_randomness(SEED), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        set_mode(captured.model, True)
        yield
        record.state = generators(), digest(list(captured.model.buffers()))


def run_eager(captured: Captured, x: torch.Tensor, leaves: bool = False) -> Record:
    """Runs the model itself in train mode, twice where a pass changes its Python attributes.

    Args:
        captured: Its graph, which says what is watched.
        x: The input.
        leaves: Whether modules that were not looked into are watched too.
    """
    model, record = captured.model, Record()
    with _staged(captured, record):
        _watch(captured, record, leaves)
        state = python_state(model)
        try:
            results = [model(x.clone())]
            if python_state(model) != state:
                # It keeps count of something: will it do the same the next time?
                record.passes = 2
                results.append(model(x.clone()))
        except Exception as error:
            record.error = error
            return record
        for result in results:
            try:
                record.values += captured.structure.read(result)
            except ValueError as error:
                record.values.append(first_line(error))
    return record


def _watch(captured: Captured, record: Record, leaves: bool) -> None:
    watched = {call.path for call in captured.calls}
    if leaves:
        watched |= {str(node.target) for node in captured.nodes if node.op == "call_module"}
    before: list[Any] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        before.append(fingerprint(module, (args, kwargs)))

    for path, module in captured.model.named_modules():
        if path not in watched:
            continue

        def leave(module: nn.Module, args: Any, kwargs: Any, result: Any, path: str = path) -> None:
            record.calls[path].append((before.pop(), fingerprint(module, result)))

        module.register_forward_pre_hook(enter, with_kwargs=True)
        module.register_forward_hook(leave, with_kwargs=True)


def run_graph(captured: Captured, x: torch.Tensor, passes: int, leaves: bool = False) -> Record:
    """Runs the graph likewise, ``passes`` times."""
    record = Record(passes=passes)
    with _staged(captured, record):
        for _ in range(passes):
            runner = _Recorder(captured, record, leaves)
            try:
                result = runner.run(captured.graph, x.clone())
            except Exception as error:
                record.error, record.failed = error, runner.position
                break
            record.values += captured.primary_first(result)
    return record


class _Recorder(Interpreter):
    """Takes fingerprints where calls start and end."""

    def __init__(self, captured: Captured, record: Record, leaves: bool) -> None:
        super().__init__(captured.model, captured.constants)
        self.captured, self.record, self.leaves = captured, record, leaves
        self.position = -1
        self.before: dict[int, Any] = {}
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

    def run_node(self, node: fx.Node) -> Any:
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
            self.record.calls[str(node.target)].append((before, fingerprint(leaf, value)))
        for index in self.ends[position]:
            self._leave(index)
        return value

    def _leave(self, index: int) -> None:
        call = self.captured.calls[index]
        self.record.calls[call.path].append((self.before.pop(index), self._print(call, call.result)))

    def _print(self, call: Call, value: Any) -> Any:
        return fingerprint(self.captured.model.get_submodule(call.path), value, self.values)


def _nodes_in(value: Any) -> list[fx.Node]:
    if isinstance(value, fx.Node):
        return [value]
    if isinstance(value, fx.Proxy):
        return [value.node]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [node for item in items for node in _nodes_in(item)]
