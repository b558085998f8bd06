"""ONNX files and programs of ``torch.export`` of thirty models by six methods, run beside the models themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from localize import LocalGraphModule, SplitError, localize
from localize.models import cifar_resnet
from tests.exports import require_right, with_statistics

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


def localized(name: str, method: str) -> LocalGraphModule:
    """A model with fresh weights and statistics that are not those of a fresh model, localized in a few modules."""
    make, size = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = with_statistics(make())
    output: Any = {"fcn_resnet50": "out"}.get(name)
    options = {} if output is None else {"output": output}
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    return localize(model, method, d=2, modules=4, example_inputs=x, seed=0, **options)


@pytest.mark.registry
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_thirty_models_by_six_methods(name: str, method: str) -> None:
    try:
        local = localized(name, method)
    except SplitError as error:  # which models have groups of neurons is tested elsewhere
        pytest.skip(str(error))
    if method in ("auglocal", "gn-dgl"):  # the others have the same primary network
        require_right(local, "primary")
    require_right(local, "local", (1, 3))


@pytest.mark.registry
@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_a_small_model(method: str) -> None:
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    local = localize(with_statistics(cifar_resnet(8, width=4)), method, d=2, example_inputs=x, seed=0)
    require_right(local, "local")
