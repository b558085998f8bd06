"""ONNX files and programs of ``torch.export`` of thirty models by six methods, run beside the models themselves."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import onnx
import onnxruntime
import pytest
import timm
import torch
import torchvision
from torch import nn

from localize import LocalGraphModule, LocalizeError, localize
from localize.export import Request, View
from localize.export.chained import tensors
from localize.export.exported_program import saved
from localize.export.onnx_model import converted
from localize.export.programs import program
from localize.models import cifar_resnet

CLASSES = 10

Make = Callable[[], nn.Module]


def _timm(name: str, **options: Any) -> Make:
    return lambda: timm.create_model(name, num_classes=CLASSES, **options)


def _torchvision(name: str, **options: Any) -> Make:
    return lambda: torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)


MODELS: dict[str, tuple[Make, int]] = {
    "resnet18": (_timm("resnet18"), 64),
    "mobilenetv2_100": (_timm("mobilenetv2_100"), 64),
    "efficientnet_b0": (_timm("efficientnet_b0"), 64),
    "convnext_atto": (_timm("convnext_atto"), 64),
    "vit_tiny_patch16_224": (_timm("vit_tiny_patch16_224", img_size=64), 64),
    "densenet121": (_timm("densenet121"), 64),
    "cifar_resnet32": (lambda: cifar_resnet(32), 32),
    "resnet50": (_torchvision("resnet50"), 64),
    "vgg11_bn": (_torchvision("vgg11_bn"), 64),
    "regnetx_002": (_timm("regnetx_002"), 64),
    "resnext50": (_torchvision("resnext50_32x4d"), 64),
    "mobilenetv3_small_100": (_timm("mobilenetv3_small_100"), 64),
    "shufflenet_v2_x0_5": (_torchvision("shufflenet_v2_x0_5"), 64),
    "squeezenet1_1": (_torchvision("squeezenet1_1"), 64),
    "googlenet": (_torchvision("googlenet", init_weights=False), 64),
    "resnetv2_50": (_timm("resnetv2_50", layers=(1, 2, 2, 1)), 64),
    "swin_tiny": (_timm("swin_tiny_patch4_window7_224", img_size=64, window_size=2), 64),
    "mixer_s32": (_timm("mixer_s32_224", img_size=64), 64),
    "poolformer_s12": (_timm("poolformer_s12"), 64),
    "ghostnet_050": (_timm("ghostnet_050"), 64),
    "seresnet18": (_timm("legacy_seresnet18"), 64),
    "regnety_002": (_timm("regnety_002"), 64),
    "inception_v3": (_timm("inception_v3"), 96),
    "cait_xxs24": (_timm("cait_xxs24_224", img_size=64, depth=6), 64),
    "deit_tiny_distilled": (_timm("deit_tiny_distilled_patch16_224", img_size=64, depth=6), 64),
    "pit_ti": (_timm("pit_ti_224", img_size=64), 64),
    "coat_lite_tiny": (_timm("coat_lite_tiny", img_size=64), 64),
    "hrnet_w18_small": (_timm("hrnet_w18_small"), 64),
    "mnasnet0_5": (_torchvision("mnasnet0_5"), 64),
    "fcn_resnet50": (_torchvision("fcn_resnet50", weights_backbone=None), 64),
}
METHODS = ("auglocal", "dgl", "predsim", "infopro", "mlaan", "gn-dgl")

REFUSED: dict[tuple[str, str], str] = {}
"""Pairs that cannot be localized, with what is said."""


def localized(name: str, method: str) -> LocalGraphModule:
    """A model with fresh weights and statistics that are not those of a fresh model, localized in a few modules."""
    make, size = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = make()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    output: Any = {"fcn_resnet50": "out"}.get(name)
    options = {} if output is None else {"output": output}
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    return localize(model, method, modules=4, example_inputs=x, seed=0, **options)


def require_alike(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], *, exact: bool = False) -> None:
    """The same tensors, to 1e-4 of their scale."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert torch.isfinite(b).all()
        if exact:
            assert torch.equal(a, b)
        else:
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * max(1.0, float(b.abs().max())))


def require_right(local: LocalGraphModule, view: Any, batches: Sequence[int] = (1, 2, 5)) -> onnx.ModelProto:
    """Writes a program of ``torch.export`` and an ONNX file, and holds what they give against the model."""
    request = Request(local, View(kind=view))
    made = program(local, view)  # both are made from it: most of the time goes in here
    loaded = torch.export.load(io.BytesIO(saved(made, local))).module()
    content = converted(made, request)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for batch in batches:
        x = torch.randn(batch, *local.plan.input.shape[1:], generator=torch.Generator().manual_seed(batch))
        wanted = expected(local, view, x)
        with torch.no_grad():
            require_alike(tensors(loaded(x)), wanted, exact=True)
        require_alike([torch.from_numpy(value) for value in session.run(None, {"input": x.numpy()})], wanted)
    proto = onnx.load_from_string(content)
    require_members(local, view, proto)
    return proto


def require_members(local: LocalGraphModule, view: Any, proto: onnx.ModelProto) -> None:
    """Every node says where it belongs; a parameter is read by nodes of the module that the plan has it in."""
    owners = {name: module.index for module in local.plan.modules for name in module.parameters}
    for node in proto.graph.node:
        said = {prop.key: prop.value for prop in node.metadata_props}
        index = int(said["localize.module"].split()[0])
        assert said["localize.module"] == f"{index} {local.plan.modules[index].name}"
        assert said["localize.network"] in ("primary", "auxiliary" if view == "local" else "primary")
        for name in node.input:
            auxiliary = name.startswith("module_")
            own = name.removeprefix("primary.") if view == "local" else name
            if auxiliary and view == "local":
                assert (name.split(".")[0], said["localize.network"]) == (f"module_{index}", "auxiliary")
            elif own in owners:
                assert owners[own] == index, f"{own} of module {owners[own]} is read in module {index}"
    (how,) = (prop.value for prop in proto.metadata_props if prop.key == "localize.nodes")
    assert how == "exact"


def expected(local: LocalGraphModule, view: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """What the model gives in eval mode."""
    if view == "local":
        return tensors(local.predictions(x))
    training = local.primary.training
    with torch.no_grad():
        found = tensors(local.primary.eval()(x))
    local.primary.train(training)
    return found


@pytest.mark.registry
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_thirty_models_by_six_methods(name: str, method: str) -> None:
    refused = REFUSED.get((name, method))
    if refused is not None:
        with pytest.raises(LocalizeError, match=refused):
            localized(name, method)
        return
    local = localized(name, method)
    if method in ("auglocal", "gn-dgl"):  # the others have the same primary network
        require_right(local, "primary")
    require_right(local, "local", (1, 3))
