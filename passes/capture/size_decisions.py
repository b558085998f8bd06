"""Decisions on sizes while tracing.

A forward that asks ``if x.shape[2] > 4``, ``range(x.shape[1])`` or ``len(x.shape)`` needs numbers where fx has proxies.
The nodes recorded so far are run on fake inputs of two batch sizes, and the answer is used if both runs agree. A
*guard* in the graph then checks it in each run: an input for which the answer would be another one raises an error, and
never gives a wrong result.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from passes.common.fake_tensors import device_of, quiet
from passes.common.inplace import SIZES
from passes.common.interpreter import Interpreter
from passes.errors import InputError, first_line
from passes.ir import TensorSpec


class Undecided(Exception):
    """The traced code needs something that is not known before it runs; the message says what."""


ASKS: dict[str, Callable[[Any], Any]] = {
    "bool": bool, "int": int, "float": float, "len": len, "index": operator.index
}  # fmt: skip
"""Conversions that Python may apply to a proxy."""


def guard(value: object, ask: str, expected: object, source: str) -> None:
    """Check a decision that was taken during capture; the graph calls this wherever it depends on one.

    Args:
        value: The value that was asked.
        ask: The conversion, a key of :data:`ASKS`.
        expected: The answer during capture.
        source: Line of the user's code that asked.

    Raises:
        InputError: The answer is not ``expected``.

    >>> guard(torch.zeros(2, 3).shape, "len", 2, "net.py:7")
    """
    answer = ASKS[ask](value)
    if answer != expected:
        raise InputError(
            f"the network takes another path for an input of this size (at {source})",
            why=f"{answer} where the example has {expected}",
            remedy="Give example_inputs of this size to localize()",
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """An answer that follows from sizes."""

    answer: Any
    varies: bool
    """Whether an input of another size might give another answer."""
    on_batch: bool
    """Whether the answer is computed from the batch size."""


class Sizes:
    """Answers questions about the nodes of a graph that is being recorded, from runs on two fake inputs."""

    def __init__(self, root: nn.Module, example: TensorSpec, constants: Mapping[str, torch.Tensor]) -> None:
        device = device_of(root)
        batch = max(1, example.shape[0])
        inputs = [((size, *example.shape[1:]), example.dtype, device) for size in (batch, 2 * batch)]
        self.runs = [_FakeRun(root, constants, *given) for given in inputs]

    def decide(self, node: fx.Node, ask: str) -> Decision:
        """Return the answer of ``node``.

        Args:
            node: A node of the graph.
            ask: The question, a key of :data:`ASKS`.

        Raises:
            Undecided: The answer depends on more than sizes, or on the batch size, or the node cannot be run.
        """
        for run in self.runs:
            run.advance(node)
        first, second = (run.values[node] for run in self.runs)
        for value in (first, second):
            if isinstance(value, Exception):
                raise Undecided(first_line(value)) from value
        if isinstance(first, torch.Tensor) and ask != "len":
            raise Undecided("its path depends on the values of a tensor")
        numbers, attributes = self._made_of(node)
        if not attributes <= SIZES:
            raise Undecided(f"its path depends on {', '.join(sorted(attributes - SIZES))} of a tensor")
        answers = [ASKS[ask](value) for value in (first, second)]
        if answers[0] != answers[1]:
            raise Undecided(f"its path depends on the batch size ({answers[0]} or {answers[1]})")
        rank_only = isinstance(first, torch.Size) or (bool(attributes) and attributes <= _RANK)
        on_batch = any(self.runs[0].values[number] != self.runs[1].values[number] for number in numbers)
        return Decision(answers[0], not rank_only, on_batch)

    def is_number(self, node: fx.Node) -> bool:
        """Return whether the value of ``node`` is a number that follows from sizes."""
        for run in self.runs:
            run.advance(node)
        known = all(isinstance(run.values[node], (int, float)) for run in self.runs)
        return known and self._made_of(node)[1] <= SIZES

    def is_none(self, node: fx.Node) -> bool:
        """Return whether the value of ``node`` is None for both batch sizes."""
        for run in self.runs:
            run.advance(node)
        return all(run.values[node] is None for run in self.runs)

    def _made_of(self, node: fx.Node) -> tuple[list[fx.Node], set[str]]:
        """Trace a number back to tensors.

        Returns:
            The numbers that it is computed from, and the names of the attributes, methods and functions that gave
            the first of them.
        """
        values = self.runs[0].values
        numbers: list[fx.Node] = []
        attributes: set[str] = set()
        pending, visited = [node], {node}
        while pending:
            part = pending.pop()
            if isinstance(values[part], torch.Tensor):
                continue
            if isinstance(values[part], (int, float)):
                numbers.append(part)
            if any(isinstance(values[parent], torch.Tensor) for parent in part.all_input_nodes):
                reader = part.args[1] if part.target is getattr else getattr(part.target, "__name__", part.target)
                attributes.add(str(reader))
            parents = [parent for parent in part.all_input_nodes if parent not in visited]
            visited.update(parents)
            pending += parents
        return numbers, attributes


_RANK = {"ndim", "dim", "ndimension", "is_nested"}
"""Attributes and methods of a tensor that depend on its rank alone."""


class _FakeRun(Interpreter):
    """A run on a fake input, continued as the graph is recorded. An error is the value of the node that raised it."""

    def __init__(
        self,
        root: nn.Module,
        constants: Mapping[str, torch.Tensor],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(root, constants)
        self.shape, self.dtype, self.device = shape, dtype, device
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def advance(self, node: fx.Node) -> None:
        """Run what has been recorded since the last call, up to and including ``node``."""
        with quiet(), self.mode, torch.no_grad():
            self.value_of(node)

    def run_node(self, node: fx.Node) -> object:
        """Return the value of a node, or the error that it raised: only who asks for that value gets the error."""
        try:
            return super().run_node(node)
        except Exception as error:
            return error

    def known(self, node: fx.Node) -> object:
        """Return the value of an argument.

        Raises:
            Exception: The argument itself could not be computed.
        """
        value = self.values[node]
        if isinstance(value, Exception):
            raise value
        return value

    def placeholder(self, node: fx.Node) -> torch.Tensor:
        """Return the fake input."""
        return torch.empty(self.shape, dtype=self.dtype, device=self.device)

    def call(self, node: fx.Node, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Call a function or method; a guard is skipped, because it only holds for the example's batch size."""
        return None if node.target is guard else super().call(node, args, kwargs)
