"""What a head reads of positions: average, class token, attention."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from localize import localize
from localize.methods.networks.heads import build_head, describe_head, head_cost
from localize.methods.networks.pooling import AttentionPool, FirstToken, GlobalAveragePool, Pooling
from localize.plan.prediction import Prediction
from passes.adapt.resolution import tokens_with_class
from passes.common.initializer import Initializer
from passes.ir import Layout, TensorSpec
from passes.pipeline import analyse
from passes.shapes.costs import CostMode
from tests.models.graphs import bounded
from tests.tools.isolated import assert_isolated

SHAPES: dict[Layout, tuple[int, ...]] = {"NCHW": (3, 5, 2, 4), "NHWC": (3, 2, 4, 5), "NLC": (3, 7, 5), "NC": (3, 5)}


@bounded(40)
@given(
    layout=st.sampled_from(sorted(SHAPES)),
    pool=st.sampled_from(["average", "token", "attention"]),
    norm=st.booleans(),
    outputs=st.integers(1, 6),
)
def test_heads(layout: Layout, pool: Pooling, norm: bool, outputs: int) -> None:
    """Values, parameters and costs, against sums over positions written out."""
    if pool == "token" and layout not in ("NLC", "NC"):
        pool = "average"
    spec, prediction = TensorSpec(SHAPES[layout], layout=layout), Prediction("vector", outputs)
    head: Any = build_head(spec, prediction, batch_norm=norm, draw=Initializer(), pool=pool).eval()
    positioned = layout != "NC"
    kinds = {"average": GlobalAveragePool, "token": FirstToken, "attention": AttentionPool}
    assert isinstance(head[0], kinds[pool]) == positioned
    x = torch.randn(spec.shape)
    tokens = x.movedim(1, -1).flatten(1, -2) if layout == "NCHW" else x.flatten(1, -2) if positioned else x[:, None]
    weights = torch.full(tokens.shape[:2], 1 / tokens.shape[1])
    if positioned and pool == "attention":
        torch.testing.assert_close(head[0](x), tokens.mean(1))
        nn.init.normal_(head[0].query)
        query = head[0].query[0].detach()
        scores = [[float(query @ t) / math.sqrt(5) for t in sample] for sample in tokens]
        weights = torch.tensor([[math.exp(s) / sum(map(math.exp, row)) for s in row] for row in scores])
    if positioned and pool == "token":
        weights = F.one_hot(torch.zeros(3, dtype=torch.int64), tokens.shape[1]).float()
    pooled = (weights[..., None] * tokens).sum(1) / (math.sqrt(1 + 1e-5) if norm else 1)
    with CostMode(3) as cost:
        found = head(x)
    torch.testing.assert_close(found, head.classifier(pooled))
    params = sum(p.numel() for p in head.parameters())
    assert head_cost(spec, prediction, norm, pool) == (params, cost.take().macs)
    words = {"average": "pool", "token": "first_token", "attention": "attention_pool"}[pool]
    assert describe_head(spec, prediction, norm, pool).split(" > ")[0] == (
        words if positioned else "batch_norm" if norm else f"linear(5, {outputs})"
    )


def small_vit(**options: Any) -> nn.Module:
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 8, "depth": 3, "num_heads": 2, "num_classes": 5}
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", **{**sizes, **options})
    return model


def small_torchvision_vit() -> nn.Module:
    model: nn.Module = torchvision.models.VisionTransformer(16, 4, 2, 2, 8, 16, num_classes=5)
    return model


@pytest.mark.parametrize(
    ("build", "tokens"),
    [
        (small_vit, 17),
        (small_torchvision_vit, 17),
        (lambda: small_vit(class_token=False, global_pool="avg"), 0),
        (lambda: small_vit(global_pool="avg"), 0),
        (lambda: torchvision.models.resnet18(num_classes=5), 0),
    ],
)
def test_class_tokens(build: Any, tokens: int) -> None:
    size = 16 if "resnet" not in type(build()).__name__.lower() else 32
    assert tokens_with_class(analyse(build(), (2, 3, size, size))) == tokens


@pytest.mark.parametrize("pool", ["average", "token", "attention"])
def test_a_vision_transformer_trains(pool: Pooling) -> None:
    x, y = torch.randn(3, 3, 16, 16), torch.tensor([0, 1, 4])
    local = localize(small_vit(), d=2, last="single", granularity="block", pool=pool, example_inputs=x, seed=0)
    heads = [module.auxiliary.head.partition(" > ")[0] for module in local.plan.modules if module.auxiliary]
    words = {"average": "pool", "token": "first_token", "attention": "attention_pool"}[pool]
    # What the patch embedding alone gives has no class token yet.
    tokens = [layer.output.shape[1] for layer in local.plan.layers[:-1]]
    assert heads == ["pool" if pool == "token" and count == 16 else words for count in tokens]
    assert words in heads
    for planned, module in zip(local.plan.modules, local.local_modules, strict=True):
        if planned.auxiliary is not None:
            assert module.auxiliary is not None
            assert planned.auxiliary.params == sum(p.numel() for p in module.auxiliary.parameters())
    assert_isolated(local, x, y)
