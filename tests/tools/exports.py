"""What an exported model is held against: the model, and its plan."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import onnx
import onnxruntime
import torch
from torch import nn

from localize import LocalGraphModule
from localize.export import Request, View
from localize.export.programs.exported_program import save
from localize.export.programs.module_chain import tensors
from localize.export.programs.onnx_model import convert
from localize.export.programs.programs import export_program


def with_statistics(model: nn.Module) -> nn.Module:
    """Give the model running statistics that are not those of a fresh model."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def images(local: LocalGraphModule, batch: int) -> torch.Tensor:
    """Random images, the same every time."""
    return torch.randn(batch, *local.plan.input.shape[1:], generator=torch.Generator().manual_seed(batch))


def expected(local: LocalGraphModule, view: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the output of the model in eval mode."""
    if view == "local":
        return tensors(local.predictions(x))
    training = local.primary.training
    with torch.no_grad():
        found = tensors(local.primary.eval()(x))
    local.primary.train(training)
    return found


def require_alike(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor], *, exact: bool = False) -> None:
    """Assert that tensors agree to 1e-4 of their scale, or bit for bit."""
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert torch.isfinite(b).all()
        if exact:
            assert torch.equal(a, b)
        else:
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * max(1.0, float(b.abs().max())))


def require_onnx(
    local: LocalGraphModule, view: Any, content: bytes, batches: Sequence[int] = (1, 2, 5)
) -> onnx.ModelProto:
    """Compare the results of onnxruntime on an ONNX file with the model."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for x in (images(local, batch) for batch in batches):
        given = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        require_alike([torch.from_numpy(value) for value in given], expected(local, view, x))
    return onnx.load_from_string(content)


def require_program(local: LocalGraphModule, view: Any, content: bytes, batches: Sequence[int] = (1, 2, 5)) -> None:
    """Load a program of ``torch.export``, and compare its results with the model, bit for bit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.11 reads weights from a buffer that cannot be written to
        loaded = torch.export.load(io.BytesIO(content)).module()
    for x in (images(local, batch) for batch in batches):
        with torch.no_grad():
            require_alike(tensors(loaded(x)), expected(local, view, x), exact=True)


def require_right(local: LocalGraphModule, view: Any, batches: Sequence[int] = (1, 2, 5)) -> onnx.ModelProto:
    """Write both, and compare them with the model, and their nodes with its plan."""
    made = export_program(local, view)  # both are made from it: a second time would take as long
    require_program(local, view, save(made, local), batches)
    proto = require_onnx(local, view, convert(made, Request(local, View(kind=view))), batches)
    require_members(local, view, proto)
    return proto


def require_members(local: LocalGraphModule, view: Any, proto: onnx.ModelProto) -> None:
    """Every node says where it belongs; a parameter is read by nodes of the module that the plan has it in."""
    owners = {name: module.index for module in local.plan.modules for name in module.parameters}
    for node in proto.graph.node:
        said = properties(node)
        index = int(said["localize.module"].split()[0])
        assert said["localize.module"] == f"{index} {local.plan.modules[index].name}"
        assert said["localize.network"] in ("primary", "auxiliary" if view == "local" else "primary")
        for name in node.input:
            own = name.removeprefix("primary.") if view == "local" else name
            if view == "local" and name.startswith("module_"):
                assert (name.split(".")[0], said["localize.network"]) == (f"module_{index}", "auxiliary")
            elif own in owners:
                assert owners[own] == index, f"{own} of module {owners[own]} is read in module {index}"
    assert properties(proto)["localize.nodes"] == "exact"


def properties(part: Any) -> dict[str, str]:
    """Return the metadata of a node or a model."""
    return {prop.key: prop.value for prop in part.metadata_props}


def convolutions(proto: onnx.ModelProto) -> Counter[tuple[int, str]]:
    """Count the convolutions by local module and network."""
    told = (properties(node) for node in proto.graph.node if node.op_type == "Conv")
    return Counter((int(each["localize.module"].split()[0]), each["localize.network"]) for each in told)


def state_of(model: nn.Module) -> tuple[Any, ...]:
    """All of a model that an export must leave alone, and the state of random numbers."""
    digest = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else b"")
        digest.update(str((tensor.requires_grad, tensor._version, tensor.data_ptr())).encode())
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    return digest.hexdigest(), modes, hooks, torch.get_rng_state().tolist()
