"""Thirty models of all kinds, small images, ten classes: what exports are held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from localize import METHODS, LocalGraphModule, LocalizeError, localize
from tests.models.real import OTHERS, PAIRED, SIZE

CLASSES = 10
MODULES = 5
"""Local modules that each is cut in: enough for every kind of cut, and quick."""
METHODS_TRIED = ("auglocal", "dgl", "predsim", "infopro", "mlaan", "gn-dgl")

Make = Callable[[], nn.Module]


def _timm(name: str, **options: Any) -> Make:
    return lambda: timm.create_model(name, num_classes=CLASSES, **options)


def _fcn() -> nn.Module:
    make = torchvision.models.segmentation.fcn_resnet50
    return make(weights=None, weights_backbone=None, num_classes=CLASSES)  # type: ignore[no-any-return]


TEN: dict[str, tuple[Make, int]] = {
    "resnest14d": (_timm("resnest14d"), SIZE),
    "regnety_002": (_timm("regnety_002"), SIZE),
    "inception_v3": (_timm("inception_v3"), 96),
    "hrnet_w18_small": (_timm("hrnet_w18_small"), SIZE),
    "mnasnet0_5": (lambda: torchvision.models.mnasnet0_5(num_classes=CLASSES), SIZE),
    "fcn_resnet50": (_fcn, SIZE),
    "deit_tiny_distilled": (_timm("deit_tiny_distilled_patch16_224", img_size=SIZE), SIZE),
    "pit_ti": (_timm("pit_ti_224", img_size=SIZE), SIZE),
    "coat_lite_tiny": (_timm("coat_lite_tiny", img_size=SIZE), SIZE),
    "cait_xxs24": (_timm("cait_xxs24_224", img_size=SIZE), SIZE),
}

THIRTY: dict[str, tuple[Make, int]] = {
    **{name: (make, 32 if name == "cifar_resnet32" else SIZE) for name, make in {**PAIRED, **OTHERS}.items()},
    **TEN,
}
"""By name a function that makes the model, and the side of its images."""


def pairs() -> list[tuple[str, str]]:
    """Every model with every method that exports are tried with."""
    return [(name, method) for name in THIRTY for method in METHODS_TRIED]


def batch(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Two images in [0, 1], and what the model should say of them."""
    size = THIRTY[name][1]
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(2, 3, size, size, generator=generator)
    places = (size, size) if name.startswith("fcn") else ()
    return x, torch.randint(CLASSES, (2, *places), generator=generator)


def localized(name: str, method: str, **options: Any) -> LocalGraphModule:
    """Build and localize a new model, in train mode.

    Raises:
        LocalizeError: The method is not for this model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = THIRTY[name][0]().train()
    x, _ = batch(name)
    modules = MODULES if METHODS[method].local else None
    return localize(model, method, d=2, **{"modules": modules, "example_inputs": x, "seed": 0, **options})


REFUSED: dict[tuple[str, str], str] = {
    ("vit_tiny_patch16_224", "gn-dgl"): "scaled_dot_product_attention of Attention cannot be split in 2 groups",
    ("shufflenet_v2_x0_5", "gn-dgl"): "Conv2d cannot be split in 2 groups",
    ("resnetv2_50", "gn-dgl"): "ends in a cut of 2 tensors, and cannot be split in 2 groups",
    ("swin_tiny", "gn-dgl"): "matmul of WindowAttention cannot be split in 2 groups",
    ("mixer_s32", "gn-dgl"): "transpose of MixerBlock cannot be split in 2 groups",
    ("ghostnet_050", "gn-dgl"): "iadd of GhostBottleneck cannot be split in 2 groups",
    ("resnest14d", "gn-dgl"): "sum of SplitAttn cannot be split in 2 groups",
    ("pit_ti", "gn-dgl"): "scaled_dot_product_attention of Attention cannot be split in 2 groups",
    ("coat_lite_tiny", "gn-dgl"): "matmul of FactorAttnConvRelPosEnc cannot be split in 2 groups",
    ("cait_xxs24", "gn-dgl"): "matmul of TalkingHeadAttn cannot be split in 2 groups",
    ("deit_tiny_distilled", "gn-dgl"): "scaled_dot_product_attention of Attention cannot be split in 2 groups",
    ("hrnet_w18_small", "gn-dgl"): "ends in a cut of 2 tensors, and cannot be split in 2 groups",
    ("fcn_resnet50", "dgl"): "method 'dgl' is for networks that classify images",
    ("fcn_resnet50", "predsim"): "method 'predsim' is for networks that classify images",
    ("fcn_resnet50", "gn-dgl"): "method 'gn-dgl' is for networks that classify images",
}
"""Pairs that cannot be localized, with what is said."""


def allowed(name: str, method: str) -> LocalGraphModule | None:
    """Return the localized model, not compared with the model itself; None if it is refused, as it should be."""
    refused = REFUSED.get((name, method))
    if refused is None:
        return localized(name, method, verify=False)
    with pytest.raises(LocalizeError, match=refused):
        localized(name, method, verify=False)
    return None
