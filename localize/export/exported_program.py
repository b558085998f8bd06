"""Format ``pt2``: a program of ``torch.export``, for ``torch.export.load`` and what takes such programs."""

from __future__ import annotations

import io

import torch

from localize.export.membership import members
from localize.export.programs import Program, failed, program, silent
from localize.export.request import Request
from localize.local_graph import LocalGraphModule

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
    for node, member in members(made, local.plan).found.items():
        node.meta["custom"] = {**node.meta.get("custom", {}), **member.properties(local.plan)}
    target = io.BytesIO()
    try:
        with silent():
            torch.export.save(made.exported, target, extra_files={PLAN_FILE: local.plan.to_json()})
    except Exception as error:
        raise failed(local, "torch.export.save", error) from error
    return target.getvalue()
