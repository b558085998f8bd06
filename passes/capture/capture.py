"""Capture: nn.Module -> Captured, by torch.fx.

The model is traced in train mode, because inference always goes through the user's own module. A policy says which
modules are leaves. Decisions that depend on sizes alone are taken for the example, and guarded. A submodule whose
forward cannot be traced for other reasons becomes a leaf as well, runs its own code, and is reported (*progressive
leafing*). The model is left as it was: mode, attributes, buffers.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from torch import fx, nn

from passes.capture.leaf_policy import LeafPolicy
from passes.capture.outputs import find_output
from passes.capture.size_decisions import Undecided
from passes.capture.tracer import Tracer
from passes.common.restore import same_randomness, set_mode, untouched
from passes.common.source_lines import line_of, source_of
from passes.errors import CaptureError, first_line
from passes.ir import Captured, Opaque, TensorSpec
from passes.structure import Output, choices, slots


def capture(
    model: nn.Module,
    policy: LeafPolicy | None = None,
    output: Output | None = None,
    *,
    joint: bool = False,
    example: TensorSpec | None = None,
    closed: Iterable[Opaque] = (),
) -> Captured:
    """Trace ``model`` into a graph.

    Args:
        model: A module whose forward takes one tensor (further arguments must have defaults, and keep them).
        policy: Which modules are leaves, besides the layers of torch.nn and modules without parameters.
        output: Which of the values that the model returns in train mode is its primary output: a key or attribute, an
            index, or several from the outside in. By default the only value. Where there are several and the model in
            eval mode returns one, the value that the same module or function computes; else the first.
        joint: Whether all values that the model returns go into one loss; then ``output`` may be left out.
        example: Shape and type of an input. Without it, no decision on sizes can be taken.
        closed: Modules that are known to be untraceable.

    Returns:
        The graph with the calls, source lines and constants that later stages need.

    Raises:
        CaptureError: The model's own forward cannot be traced, does not take one tensor, or returns no tensor; or
            ``output`` is needed, or does not lead to one value.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    >>> [node.name for node in capture(model).nodes]
    ['input_1', '_0', '_1', 'output']
    """
    _check_signature(model)
    leaves = _Leaves(model, policy or LeafPolicy(), closed)
    builtins = False
    # Each failed trace closes a module or starts to record len and int, so there are not more rounds than that.
    for _ in range(2 + sum(1 for _ in model.modules())):
        tracer = Tracer(leaves.is_leaf, leaves.policy, example, builtins)
        try:
            graph = _trace(model, tracer, training=True)
        except CaptureError:
            raise
        except Exception as error:
            path = tracer.failed_path
            if tracer.missed_number and not builtins:
                # Only now: replacing them in the user's files is the last resort.
                builtins = True
                continue
            if path is None:
                raise _refusal(model, error, tuple(leaves.failed.values())) from error
            leaves.close(Opaque(path, source_of(error), _reason(error)))
            continue
        return _finish(model, tracer, graph, leaves, output, joint)
    raise AssertionError("every failed trace must add a leaf")


class _Leaves:
    """Modules that stay one node: by the policy, or because tracing them failed."""

    def __init__(self, model: nn.Module, policy: LeafPolicy, closed: Iterable[Opaque]) -> None:
        self.model, self.policy = model, policy
        self.failed: dict[str, Opaque] = {}
        self.kinds: dict[type[nn.Module], Opaque] = {}
        for opaque in closed:
            self.close(opaque)

    def is_leaf(self, module: nn.Module, path: str, several: bool = False) -> bool:
        """Return whether a module stays one node; see :meth:`passes.capture.leaf_policy.LeafPolicy.is_leaf`."""
        return path in self.failed or type(module) in self.kinds or self.policy.is_leaf(module, path, several)

    def close(self, opaque: Opaque) -> None:
        """Close a module, and all of its class if the policy doubts it or another module of it has failed before."""
        kind = type(self.model.get_submodule(opaque.path))
        alike = any(type(self.model.get_submodule(path)) is kind for path in self.failed)
        if kind in self.policy.doubtful or (alike and kind is not nn.Sequential):
            self.kinds[kind] = opaque
        self.failed[opaque.path] = opaque

    def report(self, graph: fx.Graph) -> tuple[Opaque, ...]:
        """Return the modules in the graph that stay one node because tracing failed, in execution order."""
        closed: dict[str, Opaque] = {}
        for node in graph.nodes:
            path = str(node.target)
            if node.op != "call_module" or path in closed:
                continue
            kind = self.kinds.get(type(self.model.get_submodule(path)))
            if path in self.failed:
                closed[path] = self.failed[path]
            elif kind is not None:
                closed[path] = Opaque(path, kind.source, kind.reason)
        return tuple(closed.values())


def _trace(model: nn.Module, tracer: Tracer, training: bool) -> fx.Graph:
    with untouched(model), same_randomness():
        set_mode(model, training)
        return tracer.trace(model)


def _refusal(model: nn.Module, error: Exception, opaque: tuple[Opaque, ...]) -> CaptureError:
    remedy = "Move the code that depends on values into a submodule: a submodule that cannot be traced is kept whole"
    if "not installed as a submodule" in str(error):
        remedy = "Register it as a submodule: an attribute of the model, or an item of an nn.ModuleList"
    refusal = CaptureError(
        "the model's forward cannot be traced",
        where=type(model).__name__,
        source=source_of(error),
        why=_reason(error),
        remedy=remedy,
    )
    refusal.opaque = opaque
    return refusal


def _reason(error: BaseException) -> str:
    name, line = type(error).__name__, first_line(error)
    return line if line == name or isinstance(error, Undecided) else f"{name}: {line}"


def _check_signature(model: nn.Module) -> None:
    parameters = list(inspect.signature(model.forward).parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    inputs = [p.name for p in parameters if p.kind in positional]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in variadic]
    if not inputs or len(required) > 1:
        raise CaptureError(
            f"the model's forward must take one tensor; it takes ({', '.join(str(p) for p in parameters)})",
            where=type(model).__name__,
            source=line_of(type(model).forward),
            remedy="Wrap the model in a module whose forward takes one tensor",
        )


def _finish(
    model: nn.Module, tracer: Tracer, graph: fx.Graph, leaves: _Leaves, output: Output | None, joint: bool
) -> Captured:
    node = graph.output_node()
    values: Any = node.args[0]
    primary = _primary(model, tracer, values, output, joint)
    order = [primary, *(i for i in range(len(values)) if i != primary)]
    node.args = (values[primary] if len(values) == 1 else tuple(values[i] for i in order),)
    return Captured(
        model=model,
        graph=graph,
        calls=tuple(tracer.calls),
        scopes=dict(tracer.node_scopes),
        sources=dict(tracer.node_sources),
        constants=dict(tracer.constants),
        in_place=dict(tracer.in_place),
        opaque=leaves.report(graph),
        structure=tracer.structure.reordered(order),
        joint=joint,
    )


def _primary(model: nn.Module, tracer: Tracer, values: tuple[fx.Node, ...], output: Output | None, joint: bool) -> int:
    """Return the index of the primary output among the values that the model returns in train mode."""
    where, source = type(model).__name__, line_of(type(model).forward)
    if not values:
        raise CaptureError(
            "the model must return a tensor; in train mode it returns none",
            where=where,
            source=source,
            remedy="Wrap it in a module that returns the tensor the loss is computed from",
        )
    if output is not None:
        return find_output(tracer.structure, output, where, source)
    if len(values) == 1 or joint:
        return 0
    in_eval = _value_in_eval(model, tracer)
    if in_eval is None:
        count = sum(1 for _ in slots(tracer.structure.template))
        raise CaptureError(
            f"the model must return one tensor; in train mode it returns {count} values",
            where=where,
            source=source,
            remedy=f"Say which of them is the output. {choices(tracer.structure)}. Where all of them go into one loss, "
            "give output_criterion=",
        )
    # In eval mode the model returns one value: in train mode it is the one from the same module or function.
    alike = [i for i, node in enumerate(values) if (node.op, node.target) == (in_eval.op, in_eval.target)]
    return alike[0] if len(alike) == 1 else 0


def _value_in_eval(model: nn.Module, tracer: Tracer) -> fx.Node | None:
    """Return the node of the value that the model returns in eval mode; None if it does not return one value."""
    other = Tracer(tracer.is_leaf, tracer.policy, tracer.example, tracer.builtins is not None)
    try:
        values: Any = _trace(model, other, training=False).output_node().args[0]
    except Exception:
        return None
    return values[0] if len(values) == 1 else None
