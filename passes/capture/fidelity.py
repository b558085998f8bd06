"""Comparison of model and captured graph: both run on the same random input, and must agree bit for bit.

fx does not notice everything that a forward does. The tracer looks for what is known to be missed (`torch.no_grad`, an
assignment to a buffer, a function with a backward of its own, a change of autocasting); this comparison finds the rest,
at the price of two forward passes.

Compared are the outputs of the model, the outputs and buffers of every module that was traced into, and the states of
all random number generators. The module to blame is the first, in order of completion, that was given the same and
returns something else: its forward depends on more than its input and its weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from passes.capture.capture import capture
from passes.capture.leaf_policy import LeafPolicy
from passes.capture.replay import SEED, Trace, run_eager, run_graph
from passes.common.fake_tensors import has_values
from passes.common.source_lines import line_of
from passes.errors import CaptureError, first_line
from passes.ir import Captured, Opaque, TensorSpec
from passes.structure import Output

_TRIES = 3
"""Number of runs that may confirm a difference: state that each run toggles differs in every other run only."""
_REASON = "its traced graph computes something else: its forward depends on more than its input and weights"


def capture_verified(
    model: nn.Module,
    policy: LeafPolicy | None,
    output: Output | None,
    example: TensorSpec,
    verify: bool = True,
    joint: bool = False,
) -> Captured:
    """Capture ``model``, and keep modules whole whose traced graphs compute something else than they do.

    Args:
        model: The user's model; it is not changed.
        policy: See :func:`passes.capture.capture.capture`.
        output: See :func:`passes.capture.capture.capture`.
        example: Shape and type of an input.
        verify: Whether model and graph are compared.
        joint: See :func:`passes.capture.capture.capture`.

    Raises:
        CaptureError: See :func:`passes.capture.capture.capture` and :func:`find_difference`.
    """
    closed: list[Opaque] = []
    while True:
        captured = capture(model, policy, output, joint=joint, example=example, closed=closed)
        blamed = find_difference(captured, example) if verify else None
        if blamed is None:
            return captured
        assert blamed.path not in {opaque.path for opaque in closed}, f"{blamed.path} is whole already"
        closed.append(blamed)


def find_difference(captured: Captured, example: TensorSpec) -> Opaque | None:
    """Run model and graph in train mode on random input, from one state, and compare them; the model is not changed.

    Args:
        captured: The graph.
        example: Shape and type of the input.

    Returns:
        The module to blame for a difference; None if there is none, if the model has no values to run on, or if it does
        not take random input.

    Raises:
        CaptureError: Model and graph differ, and no submodule is to blame.
    """
    model = captured.model
    tensors = [*model.parameters(), *model.buffers()]
    if not tensors or not all(has_values(t) for t in tensors):
        return None
    x = _random(example, tensors[0].device)
    eager = run_eager(captured, x)
    if eager.error is not None:
        return None
    traced = run_graph(captured, x, eager.passes)
    if traced.same(eager):
        return None
    for _ in range(_TRIES):
        again = run_eager(captured, x, leaves=True)
        if (x.device.type != "cpu" or not eager.same(again)) and _close(traced.values, eager.values):
            # The device does not compute the same twice.
            return None
        traced = run_graph(captured, x, again.passes, leaves=True)
        if not traced.same(again):
            return _blame(captured, again, traced)
    return None


def _blame(captured: Captured, eager: Trace, traced: Trace) -> Opaque | None:
    leaves = {str(node.target) for node in captured.nodes if node.op == "call_module"}
    for path, time in _completions(captured, eager.passes):
        # Fingerprints before and after call number `time` of the module, in both runs.
        pairs = eager.calls[path], traced.calls[path]
        if any(len(pair) <= time for pair in pairs):
            continue
        (before, after), (before_too, after_too) = (pair[time] for pair in pairs)
        if before == before_too and after != after_too:
            # A leaf runs its own code either way: it does not compute the same twice.
            return None if path in leaves else _opaque(captured, path)
    if traced.failed is not None:
        # No call that ended differs: the graph failed inside of one that did not end.
        path = captured.scope_path(captured.nodes[traced.failed].name)
        if path:
            return _opaque(captured, path)
    raise CaptureError(
        "the model's forward, traced, computes something else",
        where=type(captured.model).__name__,
        source=line_of(type(captured.model).forward),
        why=first_line(traced.error) if traced.error else "it depends on more than its input and its weights",
        remedy="Move what reads Python state, global switches or random numbers into a submodule: a submodule that "
        "cannot be traced is kept whole. Or pass verify=False, to train what was traced",
    )


def _completions(captured: Captured, passes: int) -> Iterator[tuple[str, int]]:
    """Yield the module calls in the order in which they end, each with the number of earlier calls of its module."""
    ends = [(call.last, -index, call.path) for index, call in enumerate(captured.calls)]
    for position, node in enumerate(captured.nodes):
        if node.op == "call_module":
            ends.append((position, -len(captured.calls), str(node.target)))
    counts: dict[str, int] = defaultdict(int)
    for _ in range(passes):
        for *_, path in sorted(ends):
            yield path, counts[path]
            counts[path] += 1


def _opaque(captured: Captured, path: str) -> Opaque:
    return Opaque(path, line_of(type(captured.model.get_submodule(path)).forward), _REASON)


def _close(actual: Sequence[object], expected: Sequence[object]) -> bool:
    if len(actual) != len(expected):
        return False
    try:
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3, equal_nan=True)
    except (AssertionError, TypeError, ValueError):
        return False
    return True


def _random(example: TensorSpec, device: torch.device) -> torch.Tensor:
    if not example.dtype.is_floating_point:
        return torch.zeros(example.shape, dtype=example.dtype, device=device)
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(example.shape, generator=generator).to(device, example.dtype)
