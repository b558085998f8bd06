"""Decisions on sizes while tracing.

A forward that asks ``if x.shape[2] > 4``, ``range(x.shape[1])`` or ``len(x.shape)`` needs numbers where fx has proxies.
The nodes recorded so far are run on fake inputs of two batch sizes, and the answer is taken where both agree. A
*guard* goes into the graph beside it: on an input for which the answer would be another one, running the graph is an
error, and never a wrong result.
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
    """The code being traced asks for what is not known before it runs; the message says what."""


ASKS: dict[str, Callable[[Any], Any]] = {
    "bool": bool, "int": int, "float": float, "len": len, "index": operator.index
}  # fmt: skip
"""What Python may ask a proxy for."""


def guard(value: Any, ask: str, expected: Any, source: str) -> None:
    """Stands in the graph for a decision that was taken when it was captured.

    Raises:
        InputError: The decision would be another one now.
    """
    found = ASKS[ask](value)
    if found != expected:
        raise InputError(
            f"the network takes another path for an input of this size (at {source})",
            why=f"{found} where the example has {expected}",
            remedy="Give example_inputs of this size to localize()",
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """An answer that follows from sizes."""

    answer: Any
    varies: bool
    """Whether an input of another size might answer otherwise."""
    on_batch: bool
    """Whether the batch size went into it."""


class Sizes:
    """What the nodes of a graph that is being recorded yield on fake inputs of two batch sizes."""

    def __init__(self, root: nn.Module, example: TensorSpec, constants: Mapping[str, torch.Tensor]) -> None:
        device = device_of(root)
        batch = max(1, example.shape[0])
        inputs = [((size, *example.shape[1:]), example.dtype, device) for size in (batch, 2 * batch)]
        self.runs = [_FakeRun(root, constants, *given) for given in inputs]

    def decide(self, node: fx.Node, ask: str) -> Decision:
        """What ``node`` answers.

        Raises:
            Undecided: It cannot be told from sizes, or is another for a larger batch.
        """
        for run in self.runs:
            run.advance(node)
        first, second = (run.values[node] for run in self.runs)
        for value in (first, second):
            if isinstance(value, Exception):
                raise Undecided(first_line(value)) from value
        if isinstance(first, torch.Tensor) and ask != "len":
            raise Undecided("its path depends on the values of a tensor")
        numbers, asked = self._made_of(node)
        if not asked <= SIZES:
            raise Undecided(f"its path depends on {', '.join(sorted(asked - SIZES))} of a tensor")
        answers = [ASKS[ask](value) for value in (first, second)]
        if answers[0] != answers[1]:
            raise Undecided(f"its path depends on the batch size ({answers[0]} or {answers[1]})")
        rank_only = isinstance(first, torch.Size) or (bool(asked) and asked <= _RANK)
        batch = any(self.runs[0].values[one] != self.runs[1].values[one] for one in numbers)
        return Decision(answers[0], not rank_only, batch)

    def is_number(self, node: fx.Node) -> bool:
        """Whether ``node`` yields a number that follows from sizes."""
        for run in self.runs:
            run.advance(node)
        known = all(isinstance(run.values[node], (int, float)) for run in self.runs)
        return known and self._made_of(node)[1] <= SIZES

    def is_none(self, node: fx.Node) -> bool:
        """Whether ``node`` yields None, whatever the batch."""
        for run in self.runs:
            run.advance(node)
        return all(run.values[node] is None for run in self.runs)

    def _made_of(self, node: fx.Node) -> tuple[list[fx.Node], set[str]]:
        """The numbers that a number is computed from, and what they were read off tensors by."""
        values = self.runs[0].values
        numbers: list[fx.Node] = []
        found: set[str] = set()
        pending, seen = [node], {node}
        while pending:
            one = pending.pop()
            if isinstance(values[one], torch.Tensor):
                continue
            if isinstance(values[one], (int, float)):
                numbers.append(one)
            if any(isinstance(values[parent], torch.Tensor) for parent in one.all_input_nodes):
                found.add(str(one.args[1] if one.target is getattr else getattr(one.target, "__name__", one.target)))
            fresh = [parent for parent in one.all_input_nodes if parent not in seen]
            seen.update(fresh)
            pending += fresh
        return numbers, found


_RANK = {"ndim", "dim", "ndimension", "is_nested"}
"""What of a tensor depends on its rank alone."""


class _FakeRun(Interpreter):
    """One run on a fake input, continued as the graph is recorded. An error is the value of the node that raised it."""

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

    def run_node(self, node: fx.Node) -> Any:
        """Return the value of a node, or the error that it raised: only who asks for that value gets the error."""
        try:
            return super().run_node(node)
        except Exception as error:
            return error

    def known(self, node: fx.Node) -> Any:
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

    def call(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function or method; a guard is skipped, because it only holds for the example's batch size."""
        return None if node.target is guard else super().call(node, args, kwargs)
