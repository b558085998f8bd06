"""Write the format ``onnx``: the model for other runtimes and for viewers, with the local module of every node."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Any

import torch

from localize.export.programs.onnx_graph import describe_nodes, mark, merge_tied, name_batch, name_values, tidy
from localize.export.programs.operation_owners import OperationOwners, operation_owners
from localize.export.programs.programs import Program, export_program, failed, require_values, silent
from localize.export.request import Request
from localize.runtime.exporting import ExportError
from localize.runtime.local_graph import LocalGraphModule
from localize.version import own_version
from passes.common.restore import same_randomness

INPUT = "input"
"""Name of the input."""
LIMIT = (1 << 31) - (1 << 24)
"""Most bytes of weights: a protobuf message stays below 2 GiB, and 16 MiB of that are kept for the graph."""


def write_onnx(request: Request) -> bytes:
    """Write a localized model in eval mode as ONNX, for any batch size.

    View ``"primary"`` is the primary network alone; parameters have the names of its own ``state_dict``. View
    ``"local"`` adds the logits of every auxiliary network as outputs before it; parameters have the names of the
    :class:`~localize.LocalGraphModule`. Batch norms stay separate nodes, so that weights equal those of the model;
    runtimes fold them when they load the file.

    The ``metadata_props`` of each node name its local module (``localize.module``) and its network
    (``localize.network``: ``primary`` or ``auxiliary``). The name of a node begins with the module too, as a path,
    since viewers group nodes by name. The ``metadata_props`` of the model hold the plan.

    Raises:
        ExportError: A package is missing, the weights have no values or are too large for the format, or torch cannot
            export the model.
        LocalizeError: The model has no predictions; see :meth:`localize.LocalGraphModule.predictions`.
    """
    require_packages()
    local = request.local
    require_values(local)
    require_size(local, auxiliary=request.view.kind == "local")
    return convert(export_program(local, request.view.kind, tensors_alone=True), request)


def convert(made: Program, request: Request) -> bytes:
    """Convert a program to an ONNX file.

    Args:
        made: The exported program, without containers among its outputs.
        request: The request that it was exported for.

    Raises:
        ExportError: Torch cannot convert the program.
    """
    owners = operation_owners(made, request.local.plan)
    try:
        with silent(), same_randomness():
            return _written(made, owners, request)
    except Exception as error:
        raise failed(request.local, "torch.onnx", error) from error


def require_packages() -> None:
    """Check that the packages that write ONNX files are installed.

    Raises:
        ExportError: ``onnx`` or ``onnxscript`` cannot be imported.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ExportError(
            "ONNX files cannot be written",
            why=f"{' and '.join(missing)} cannot be imported",
            remedy="pip install 'localize[export]'",
        )


def require_size(local: LocalGraphModule, *, auxiliary: bool) -> None:
    """Check that the weights fit in one ONNX file.

    Raises:
        ExportError: The weights are larger than ``LIMIT``, nearly 2 GiB.
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
    """Write what the file is, and how it was made, into its metadata."""
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
