"""Format ``onnx``: the model for other runtimes and for viewers, with the local module of every node."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import torch

from localize.export.programs.onnx_graph import describe_nodes, mark, merge_tied, name_batch, name_values, tidy
from localize.export.programs.operation_owners import OperationOwners, operation_owners
from localize.export.programs.programs import Program, failed, program, require_values, silent
from localize.export.request import ExportError, Request
from localize.runtime.local_graph import LocalGraphModule
from localize.version import own_version
from passes.common.restore import same_randomness

INPUT = "input"
"""Name of what goes in."""
LIMIT = (1 << 31) - (1 << 24)
"""Most bytes of weights: protobuf holds no message of 2 GiB, and 16 MiB of that are for the graph."""


def onnx_model(request: Request) -> bytes:
    """A localized model in eval mode as ONNX, for any batch size.

    View ``"primary"`` is the primary network alone, its parameters under the names of its own ``state_dict``. View
    ``"local"`` has the logits of every auxiliary network as outputs before it, and names as
    :class:`~localize.LocalGraphModule` has them. Batch norms stay nodes of their own, so that weights are what they are
    in the model; runtimes fold them as they load.

    Each node's ``metadata_props`` say in which local module it is (``localize.module``), and whether in its auxiliary
    networks (``localize.network``). Its name begins with that too, as a path: viewers that group nodes do it by that.
    The model's own hold the plan.

    Raises:
        ExportError: A package is missing, the weights have no values or are too large for the format, or torch cannot
            export the model.
        LocalizeError: It has no predictions; see :meth:`localize.LocalGraphModule.predictions`.
    """
    require_packages()
    local = request.local
    require_values(local)
    require_size(local, auxiliary=request.view.kind == "local")
    return converted(program(local, request.view.kind, tensors_alone=True), request)


def converted(made: Program, request: Request) -> bytes:
    """The ONNX file of a program.

    Raises:
        ExportError: Torch cannot convert it.
    """
    owners = operation_owners(made, request.local.plan)
    try:
        with silent(), same_randomness():
            return _written(made, owners, request)
    except Exception as error:
        raise failed(request.local, "torch.onnx", error) from error


def require_packages() -> None:
    """Refuses to go on without what ONNX files are made with.

    Raises:
        ExportError: A package is missing.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ExportError(
            "ONNX files cannot be written",
            why=f"{' and '.join(missing)} cannot be imported",
            remedy="pip install 'localize[export]'",
        )


def require_size(local: LocalGraphModule, *, auxiliary: bool) -> None:
    """Refuses what would not fit in one file.

    Raises:
        ExportError: The weights take 2 GiB or more.
    """
    whole = local if auxiliary else local.primary
    held = {id(t): t.numel() * t.element_size() for t in (*whole.parameters(), *whole.buffers())}
    size = sum(held.values())
    if size > LIMIT:
        smaller = 'Write the primary network alone (view="primary"), or' if auxiliary else "Write"
        raise ExportError(
            f"weights of {size / (1 << 30):.2f} GiB do not fit in an ONNX file",
            why="protobuf, its form, ends at 2 GiB",
            remedy=f'{smaller} the format "pt2", which has no such limit',
        )


def _written(made: Program, owners: OperationOwners, request: Request) -> bytes:
    import onnx
    import onnx_ir

    for node, owner in owners.by_node.items():
        mark(node, owner)
    result: Any = torch.onnx.export(made.exported, dynamo=True, optimize=False, verbose=False)
    model = result.model
    tidy(model)
    merge_tied(model)
    name_values(model, INPUT, made.outputs)
    name_batch(model, "batch")
    describe_nodes(model, request.local.plan)
    _describe(model, request, exact=owners.exact)
    proto = onnx_ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    content: bytes = proto.SerializeToString()
    return content


def _describe(model: Any, request: Request, *, exact: bool) -> None:
    """Says what the file is, and how it was made."""
    plan = request.local.plan
    model.producer_name, model.producer_version = "localize", own_version()
    model.doc_string = f"{plan.model}, localized by {plan.method}: {len(plan.modules)} local modules"
    model.graph.name = plan.model
    model.graph.metadata_props.clear()
    model.metadata_props.update(
        {
            "localize.version": own_version(),
            "localize.torch": str(torch.__version__),
            "localize.view": request.view.kind,
            "localize.method": plan.method,
            "localize.options": json.dumps(json.loads(plan.to_json())["options"]),
            "localize.plan": plan.to_json(indent=None),
            "localize.nodes": "exact" if exact else "by name and order",
        }
    )
