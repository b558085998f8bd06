"""Clean up the ONNX graph that torch's exporter returns: remove idle nodes, name values, assign nodes to local modules.

``model`` is an ``onnx_ir.Model`` throughout, and is changed in place.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from torch import fx

from localize.export.programs.module_chain import AUXILIARY, ModuleChain
from localize.export.programs.operation_owners import OperationOwner
from localize.plan.plan import Plan
from localize.runtime.local_graph import LocalGraphModule
from localize.runtime.local_module import LocalModule
from passes.codegen.generate import PRIMARY

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnxscript.rewriter import RewriteRule

_MARK = "localize"
_SCOPE, _CHAIN, _WHOLE = (
    f"{kind.__module__}.{kind.__qualname__}" for kind in (LocalModule, ModuleChain, LocalGraphModule)
)
"""Class paths, as torch's exporters write them."""
_NAMESPACE, _SCOPES, _CLASSES = "namespace", "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"


def mark(node: fx.Node, owner: OperationOwner) -> None:
    """Record the owner of an operation as a module around it (``nn_module_stack``).

    No other metadata of a node outlives decomposition and reaches ONNX nodes.

    The modules of a chain are taken out of the record, so that operations of all views look alike.
    """
    (root, (_, kind)), *inner = (node.meta.get("nn_module_stack") or {"": ("", "")}).items()
    place = f"{_MARK}:{owner.module}:{AUXILIARY if owner.auxiliary else ''}"
    if kind == _CHAIN:
        kind, inner = _WHOLE, [(key, (_own_path(path, owner), each)) for key, (path, each) in inner]
    stack = {root: ("", kind), place: (place, _SCOPE), **{key: (path, each) for key, (path, each) in inner if path}}
    node.meta["nn_module_stack"] = stack


def _own_path(path: str, owner: OperationOwner) -> str:
    """Return the path of a module within the primary or auxiliary networks; empty for modules around those."""
    start = f"{owner.key if owner.auxiliary else PRIMARY}."
    return path.removeprefix(start) if path.startswith(start) else ""


def tidy(model: ir.Model) -> None:
    """Fold constants, and remove nodes that change nothing.

    Nodes are not fused: each stays part of one layer, and each parameter keeps its values and name. The exporter's own
    optimizer would fold batch norms into convolutions, under the names of the convolutions, and would merge
    initializers of equal values, which in a fresh network are most norms.
    """
    import onnx_ir.passes.common as passes
    from onnxscript import optimizer, rewriter

    passes.InlinePass()(model)
    # Folding and rewriting each may leave work for the other, so both run twice.
    for _ in range(2):
        optimizer.fold_constants(model)
        rewriter.rewrite(model, _rules())
    passes.RemoveUnusedNodesPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.LiftSubgraphInitializersToMainGraphPass()(model)
    passes.OutputFixPass()(model)
    passes.NameFixPass()(model)


def _rules() -> list[RewriteRule]:
    """Return rewriting rules that remove a single node and leave its neighbours as they are."""
    from onnxscript.rewriter.rules import common

    names = (
        "add_0_rule", "sub_0_rule", "mul_by_1_rule", "div_by_1_rule",
        "no_op_cast_rule", "no_op_expand_rule", "no_op_transpose_rule", "dropout_inference_rule", "dropout_zero_rule",
        "remove_optional_bias_from_conv_rule", "remove_optional_bias_from_conv_transpose_rule",
        "remove_optional_bias_from_gemm_rule",
    )  # fmt: skip
    return [getattr(common, name) for name in names]


def merge_tied(model: ir.Model) -> None:
    """Merge initializers that are one tensor in the model into the first of them."""
    import onnx_ir

    first: dict[tuple[object, ...], ir.Value] = {}
    for name, value in list(model.graph.initializers.items()):
        raw = getattr(value.const_value, "raw", None)
        if raw is None or not hasattr(raw, "data_ptr") or not raw.numel():
            continue
        one = first.setdefault((raw.data_ptr(), raw.dtype, tuple(raw.shape), raw.stride()), value)
        if one is not value:
            onnx_ir.convenience.replace_all_uses_with(value, one)
            del model.graph.initializers[name]


def name_values(model: ir.Model, given: str, outputs: Sequence[str]) -> None:
    """Name the input and the outputs; other values of these names are renamed, parameters excepted."""
    graph = model.graph
    taken = set(graph.initializers)
    wanted = [unique(name, taken) for name in (given, *outputs)]
    ends = [*graph.inputs[:1], *graph.outputs]
    assert len(ends) == len(wanted), f"{len(graph.outputs)} outputs for {len(outputs)} names"
    for value in _values(graph):
        if value.name in wanted:
            value.name = unique(f"{value.name}_", taken)
    for value, name in zip(ends, wanted, strict=True):
        value.name = name


def name_batch(model: ir.Model, name: str) -> None:
    """Name the batch size in the shapes of all values, if it may vary."""
    import onnx_ir

    (given, *_) = model.graph.inputs
    symbol = given.shape[0] if given.shape is not None else 0
    if isinstance(symbol, int):
        return
    whole = re.compile(rf"\b{re.escape(str(symbol.value))}\b")
    for value in _values(model.graph):
        if value.shape is not None:
            dims = [dim if isinstance(dim, int) else whole.sub(name, str(dim.value)) for dim in value.shape]
            value.shape = onnx_ir.Shape(dims)


def describe_nodes(model: ir.Model, plan: Plan) -> None:
    """Write the owner of each node into its metadata, and name the node by it, as a path.

    Model Explorer groups nodes by names, as paths between slashes. Netron 9.3 does not group nodes; it shows their
    names and their ``metadata_props``.
    """
    nodes = list(_nodes(model.graph))
    owners = _owners(nodes)
    taken: set[str] = set()
    for node in nodes:
        owner = owners[node]
        scopes, classes = (ast.literal_eval(node.metadata_props.get(key, "[]")) for key in (_SCOPES, _CLASSES))
        if len(scopes) > 1:
            marked = _marked(node) is not None
            scopes[1 : 1 + marked], classes[1 : 1 + marked] = [owner.key], [_SCOPE]
            name = owner.properties(plan)["localize.module"].replace("/", "_")
            shown = [scopes[0], f"{name} {AUXILIARY}" if owner.auxiliary else name, *scopes[2:]]
            texts = {_SCOPES: repr(scopes), _CLASSES: repr(classes)}
            texts[_NAMESPACE] = "/".join(f"{a}: {b}" for a, b in zip(shown, classes, strict=True))
        else:
            texts = {}
        # The rest of the exporter's metadata holds paths of files on the user's machine.
        node.metadata_props.clear()
        node.metadata_props.update({**owner.properties(plan), **texts})
        inside = [owner.key, *scopes[2:-1][-1:], node.op_type]
        node.name = unique(re.sub(r"[^\w/-]+", "_", "/".join(inside).replace(".", "/")), taken)


def _owners(nodes: Sequence[ir.Node]) -> dict[ir.Node, OperationOwner]:
    """Read the marks of nodes; a node without a mark belongs with its readers, or else with its operands."""
    known = {node: owner for node in nodes if (owner := _marked(node)) is not None}
    for node in reversed(nodes):
        if node not in known:
            readers = (user.node for value in node.outputs for user in value.uses())
            _put(known, node, readers, min)
    for node in nodes:
        if node not in known:
            producers = (value.producer() for value in node.inputs if value is not None)
            _put(known, node, producers, max)
            known.setdefault(node, OperationOwner(0))
    return known


def _put(
    known: dict[ir.Node, OperationOwner],
    node: ir.Node,
    others: Iterable[ir.Node | None],
    choose: Callable[..., OperationOwner],
) -> None:
    near = [known[other] for other in others if other in known]
    if near:
        known[node] = choose(near, key=lambda owner: owner.module)


def _marked(node: ir.Node) -> OperationOwner | None:
    for scope in ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))[1:2]:
        word, _, rest = scope.partition(":")
        index, _, network = rest.partition(":")
        if word == _MARK and index.isdigit():
            return OperationOwner(int(index), auxiliary=bool(network))
    return None


def unique(name: str, taken: set[str]) -> str:
    """Make a name unique by a number after it, and add it to ``taken``."""
    candidate, count = name, 1
    while candidate in taken:
        candidate, count = f"{name}_{count}", count + 1
    taken.add(candidate)
    return candidate


def _nodes(graph: ir.Graph) -> Iterable[ir.Node]:
    import onnx_ir

    return onnx_ir.traversal.RecursiveGraphIterator(graph)


def _values(graph: ir.Graph) -> Iterable[ir.Value]:
    yield from graph.inputs
    for node in _nodes(graph):
        yield from node.outputs
