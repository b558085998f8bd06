"""Format ``pt2``: a program of ``torch.export``, for ``torch.export.load`` and what takes such programs."""

from __future__ import annotations

import io
import re

import torch
from torch import fx

from localize.export.programs.operation_owners import operation_owners
from localize.export.programs.programs import Program, failed, program, silent
from localize.export.request import Request
from localize.runtime.local_graph import LocalGraphModule

PLAN_FILE = "localize.plan.json"
"""The plan among the program's extra files."""


def exported_program(request: Request) -> bytes:
    """A localized model as ``torch.export.save`` writes it, in eval mode and for any batch size.

    ``torch.export.load(path).module()(x)`` gives what the model gives, or with view ``"local"`` all predictions as one
    tuple. Each operation's ``meta["custom"]`` names its local module, as nodes of the format ``onnx`` do, and the plan
    is among the ``extra_files``, as ``localize.plan.json``.

    Raises:
        ExportError: The weights have no values, or torch cannot export the model.
        LocalizeError: It has no predictions; see :meth:`localize.LocalGraphModule.predictions`.
    """
    return saved(program(request.local, request.view.kind), request.local)


def saved(made: Program, local: LocalGraphModule) -> bytes:
    """The file of a program.

    Raises:
        ExportError: Torch cannot save it.
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
    """Takes from an operation what cannot be read again, and what tells where the user's files are.

    The modules that it stands in are written between commas and semicolons, which names may hold too.
    """
    node.meta.pop("stack_trace", None)
    stack = node.meta.get("nn_module_stack")
    if stack:
        words = {key: [re.sub(r"[,;]", "_", word) for word in (key, path)] for key, (path, _) in stack.items()}
        node.meta["nn_module_stack"] = {words[key][0]: (words[key][1], kind) for key, (_, kind) in stack.items()}
