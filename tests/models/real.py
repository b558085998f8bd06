"""Real architectures of ten classes, by name, and the size of their images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torchvision
from torch import nn

from localize.models import cifar_resnet

CLASSES = 10

SIZE = 64

Make = Callable[[], nn.Module]


def _timm(name: str, **options: Any) -> Make:
    return lambda: timm.create_model(name, num_classes=CLASSES, **options)


def _torchvision(name: str, **options: Any) -> Make:
    return lambda: torchvision.models.get_model(name, num_classes=CLASSES, **options)


PAIRED: dict[str, Make] = {
    "resnet18": _timm("resnet18"),
    "mobilenetv2_100": _timm("mobilenetv2_100"),
    "efficientnet_b0": _timm("efficientnet_b0"),
    "convnext_atto": _timm("convnext_atto"),
    "vit_tiny_patch16_224": _timm("vit_tiny_patch16_224", img_size=SIZE),
    "densenet121": _timm("densenet121"),
}

OTHERS: dict[str, Make] = {
    "cifar_resnet32": lambda: cifar_resnet(32),
    "resnet50": _torchvision("resnet50"),
    "vgg11_bn": _torchvision("vgg11_bn"),
    "regnetx_002": _timm("regnetx_002"),
    "resnext50": _torchvision("resnext50_32x4d"),
    "mobilenetv3_small_100": _timm("mobilenetv3_small_100"),
    "shufflenet_v2_x0_5": _torchvision("shufflenet_v2_x0_5"),
    "squeezenet1_1": _torchvision("squeezenet1_1"),
    "googlenet": _torchvision("googlenet", init_weights=False),
    "resnetv2_50": _timm("resnetv2_50", layers=(1, 2, 2, 1)),
    "swin_tiny": _timm("swin_tiny_patch4_window7_224", img_size=SIZE, window_size=2),
    "mixer_s32": _timm("mixer_s32_224", img_size=SIZE),
    "poolformer_s12": _timm("poolformer_s12"),
    "ghostnet_050": _timm("ghostnet_050"),
}

SMALLER: dict[str, Make] = {
    "resnet18": PAIRED["resnet18"],
    "test_efficientnet": _timm("test_efficientnet"),
    "convnext_atto": _timm("convnext_atto", depths=(1, 1, 2, 1)),
    "vit_tiny_patch16_224": _timm("vit_tiny_patch16_224", img_size=SIZE, depth=4),
    "densenet121": _timm("densenet121", block_config=(2, 2, 3, 2)),
}
"""As many kinds of blocks, and less of the same, to be quick."""
