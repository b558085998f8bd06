"""MLAAN: what is equal to its base, each part alone and together, options, and real steps around every base."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from localize import MethodError, Plan, localize
from localize.bench.sweep.isolation import fake_step, reach
from localize.models import cifar_resnet
from tests.models.dense_models import CLASSES, UNet
from tests.models.zoo import assert_same, gradients
from tests.tools.mlaan import BASES, METHODS, small

# What is equal to what ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modules", [None, 3])
@pytest.mark.parametrize("method", METHODS)
def test_without_mlm_and_lam_it_is_its_base(method: str, modules: int | None) -> None:
    base, options = BASES[method]
    found = []
    for name, chosen in ((method, {"mlm": False, "lam": False}), (base, options)):
        local, x, y = small(name, modules=modules, **chosen)
        losses = {}
        for out in local.steps(x, y):
            out.loss.backward()
            losses[f"loss of {out.name}"] = out.loss.detach()
        found.append({**losses, **gradients(local)})
    assert len(found[0]) > 30
    assert_same(*found)


@pytest.mark.parametrize("method", METHODS)
def test_one_module_is_backpropagation(method: str) -> None:
    found = []
    for name in (method, "bp"):
        local, x, y = small(name, modules=1)
        loss = local.loss(x, y)
        loss.backward()
        found.append({"loss": loss.detach(), **gradients(local)})
    assert_same(*found)


@pytest.mark.parametrize("modules", range(2, 8))
def test_every_number_of_modules(modules: int) -> None:
    local, x, y = small("mlaan", modules=modules)
    assert len(local.plan.layers) == 7
    assert [len(m.cascade.reaches) for m in local.plan.modules if m.cascade] == [min(j, 2) for j in range(modules)]
    assert reach(local, x, y) == type(reach(local, x, y))((), ())


EACH: list[dict[str, Any]] = [
    {"mlm": False},
    {"lam": False},
    {},
    {"leap": "cascaded"},
    {"leap": "both"},
    {"variant": "released"},
    {"variant": "released", "mlm": False},
]


@pytest.mark.parametrize("options", EACH, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_each_part_alone_and_together(method: str, options: dict[str, Any]) -> None:
    """Losses reach what plans say, plans count what is built, and all gradients are those of the fused loss."""
    local, x, y = small(method, modules=4, **options)
    assert reach(local, x, y).violations == ()
    assert reach(local, x, y).untrained == ()
    built = sum(p.numel() for module in local.local_modules for p in module.parameters())
    assert built == local.plan.auxiliary_params
    assert Plan.from_json(local.plan.to_json()) == local.plan
    for out in local.steps(x, y):
        out.loss.backward()
    expected = gradients(local)
    assert all(bool(g.isfinite().all()) for g in expected.values())
    assert set(expected) == {name for name, p in local.named_parameters() if p.requires_grad}
    local.zero_grad()
    local.loss(x, y).backward()
    assert_same(gradients(local), expected)
    assert len(local.eval().predictions(x)) == 4


def test_statistics_move_once_a_step_also_those_of_copies() -> None:
    local, x, y = small("mlaan", leap="both", k=3)
    counted = {name: int(b) for name, b in local.named_buffers() if name.endswith("num_batches_tracked")}
    local.loss(x, y).backward()
    for name, buffer in local.named_buffers():
        if name in counted:
            assert int(buffer) == counted[name] + 1, name
    assert any("cascaded" in name for name in counted)


# Options --------------------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"variant": "code"}, "variant must be 'paper' or 'released', got 'code'"),
    ({"k": 1}, "k must be an integer >= 2, got 1"),
    ({"k": 2.5}, "k must be an integer >= 2, got 2.5"),
    ({"p": 0}, "p must be an integer >= 1, got 0"),
    ({"p": True}, "p must be an integer >= 1, got True"),
    ({"mlm": 1}, "mlm must be True or False, got 1"),
    ({"lam": "off"}, "lam must be True or False, got 'off'"),
    ({"momentum": 1.5}, "momentum must be a number from 0 to 1, got 1.5"),
    ({"independent": -1}, "independent must be a number >= 0, got -1"),
    ({"cascaded": float("nan")}, "cascaded must be a number >= 0, got nan"),
    ({"independent": 0, "cascaded": 0}, "leave no loss"),
    ({"leap": "none"}, "leap must be 'independent', 'cascaded' or 'both', got 'none'"),
    ({"d": 4, "depth": 3}, "has no option 'depth'"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=lambda value: str(value)[:30])
@pytest.mark.parametrize("method", METHODS)
def test_wrong_options(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        localize(nn.Identity(), method, **options)


def test_options_of_the_base_are_checked_and_kept() -> None:
    with pytest.raises(MethodError, match="hidden"):
        localize(nn.Identity(), "dgl+mlaan", hidden=-1)
    with pytest.raises(MethodError, match="alpha_first"):
        localize(nn.Identity(), "infopro+mlaan", alpha_first=-1)
    local, _, _ = small("infopro+mlaan", mean=[0.5, 0.5, 0.5], std=[0.2, 0.2, 0.2], modules=2)
    assert local.plan.options["mean"] == (0.5, 0.5, 0.5)
    assert Plan.from_json(local.plan.to_json()) == local.plan


def test_the_variant_decides_what_is_not_said() -> None:
    paper = small("mlaan", modules=2)[0].plan.options
    released = small("mlaan", modules=2, variant="released", cascaded=0.5)[0].plan.options
    names = ("k", "independent", "cascaded", "leap")
    assert [paper[name] for name in names] == [3, 0.5, 0.5, "independent"]
    assert [released[name] for name in names] == [2, 0.001, 0.5, "cascaded"]


# Models ---------------------------------------------------------------------------------------------------------------

REAL = {
    "resnet18": 64,
    "mobilenetv2_100": 64,
    "efficientnet_b0": 64,
    "convnext_atto": 64,
    "vit_tiny_patch16_224": 64,
    "densenet121": 64,
}


@pytest.mark.registry  # one real step of each of them by default: tests/contracts/test_every_method.py
@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("method", METHODS)
def test_a_real_step(name: str, method: str) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"img_size": REAL[name]} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=5, **options)
    x, y = torch.rand(4, 3, REAL[name], REAL[name]), torch.arange(4)
    local = localize(model, method, modules=3, p=2, k=2, seed=0, example_inputs=x, verify=False).train()
    optimizer = torch.optim.SGD((p for p in local.parameters() if p.requires_grad), lr=0.01)
    found = reach(local, x, y)
    assert found.violations == ()
    assert found.untrained == ()
    built = sum(p.numel() for module in local.local_modules for p in module.parameters())
    assert built == local.plan.auxiliary_params
    loss = local.loss(x, y)
    loss.backward()
    optimizer.step()
    assert bool(loss.isfinite())
    assert all(bool(p.isfinite().all()) for p in local.parameters())


def test_maps_of_logits() -> None:
    """Where the base knows maps it works; where it does not it says so."""
    x, y = torch.rand(2, 3, 32, 32), torch.randint(CLASSES, (2, 32, 32))
    for method in ("mlaan", "infopro+mlaan"):
        local = localize(UNet(True), method, modules=3, p=2, seed=0, example_inputs=x).train()
        assert reach(local, x, y).violations == ()
        assert local.plan.prediction.kind == "dense"
    with pytest.raises(MethodError, match="method 'dgl' is for networks that classify images"):
        localize(UNet(True), "dgl+mlaan", modules=3, example_inputs=x)


@pytest.mark.parametrize("method", METHODS)
def test_without_memory(method: str) -> None:
    with torch.device("meta"):
        model = cifar_resnet(14)
    local = localize(model, method, modules=4, leap="both")
    assert all(p.is_meta for p in local.parameters())
    assert fake_step(local).violations == ()
