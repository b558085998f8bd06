"""Write the format ``pt2``: a program of ``torch.export``, for ``torch.export.load`` and tools that take programs."""

from __future__ import annotations

import io
import re

import torch
from torch import fx

from localize.export.programs.operation_owners import operation_owners
from localize.export.programs.programs import Program, export_program, failed, silent
from localize.export.request import Request
from localize.runtime.local_graph import LocalGraphModule

PLAN_FILE = "localize.plan.json"
"""Name of the plan among the extra files of the program."""


def write_program(request: Request) -> bytes:
    """Write a localized model as ``torch.export.save`` does, in eval mode and for any batch size.

    ``torch.export.load(path).module()(x)`` returns the same as the model, or for view ``"local"`` all predictions as
    one tuple. ``meta["custom"]`` of each operation names its local module, with the same keys as nodes of the format
    ``onnx``. The plan is among the ``extra_files``, as ``localize.plan.json``.

    Raises:
        ExportError: The weights have no values, or torch cannot export the model.
        LocalizeError: The model has no predictions; see :meth:`localize.LocalGraphModule.predictions`.
    """
    return save(export_program(request.local, request.view.kind), request.local)


def save(made: Program, local: LocalGraphModule) -> bytes:
    """Return the content of the file of a program.

    Raises:
        ExportError: Torch cannot save the program.
    """
    for node, owner in operation_owners(made, local.plan).by_node.items():
        node.meta["custom"] = {**node.meta.get("custom", {}), **owner.properties(local.plan)}
    for node in made.exported.graph.nodes:
        _make_writable(node)
    target = io.BytesIO()
    try:
        with silent():
            torch.export.save(made.exported, target, extra_files={PLAN_FILE: local.plan.to_json()})
    except Exception as error:
        raise failed(local, "torch.export.save", error) from error
    return target.getvalue()


def _make_writable(node: fx.Node) -> None:
    """Remove from an operation what torch cannot read again, and paths of files on the user's machine.

    torch.export separates the names of modules by commas and semicolons, so names must not hold them.
    """
    node.meta.pop("stack_trace", None)
    stack = node.meta.get("nn_module_stack")
    if stack:
        words = {key: [re.sub(r"[,;]", "_", word) for word in (key, path)] for key, (path, _) in stack.items()}
        node.meta["nn_module_stack"] = {words[key][0]: (words[key][1], kind) for key, (_, kind) in stack.items()}
