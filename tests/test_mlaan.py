"""MLAAN: which layers leap, what plans say, what is equal to its base, and real steps around every base."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from localize import LocalGraphModule, MethodError, Plan, localize
from localize.api import leaf_policy
from localize.methods.leaps import Leaps
from localize.models import cifar_resnet
from localize.records import Auxiliary
from localize.runtime.flops import step_flops
from localize.runtime.isolation import fake_step, reach
from passes.pipeline import analyse
from passes.resolution import stage_starts
from passes.select import leaps
from tests.dense_models import CLASSES, UNet
from tests.zoo import assert_same, gradients

METHODS = ("mlaan", "dgl+mlaan", "infopro+mlaan")
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mlaan": ("auglocal", {"d": 1, "last": "single"}),
    "dgl+mlaan": ("dgl", {}),
    "infopro+mlaan": ("infopro", {}),
}
RELEASED = json.loads((Path(__file__).parent / "reference" / "baselines_cifar.json").read_text())["mlaan_leap_resnet32"]


def small(method: str, seed: int = 0, **options: Any) -> tuple[LocalGraphModule, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    x, y = torch.rand(4, 3, 16, 16), torch.arange(4)
    model = cifar_resnet(14, width=4)
    options = {"seed": 0, "max_cut": 1, "example_inputs": x, **options}
    return localize(model, method, **options).train(), x, y


def leaping(auxiliary: Auxiliary | None) -> list[int | None]:
    assert auxiliary is not None
    return [block.source for block in auxiliary.blocks if block.kind in ("leap", "twin", "free")]


# Which layers leap ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_leaps_of_resnet32_are_the_released_ones(variant: str) -> None:
    """All of them, where each is a true copy: no tensor changes its shape, so no note says so."""
    with torch.device("meta"):
        model = cifar_resnet(32)
    plan = localize(model, "mlaan", modules=8, variant=variant).plan
    blocks = {layer.name: layer.index for layer in plan.layers}
    for row, module in zip(RELEASED, plan.modules, strict=False):
        stage, block = row["ends_block"]
        assert module.layers[-1] == blocks[f"layer{stage}.{block}"]
        assert module.cascade is not None
        auxiliary = module.auxiliary if variant == "paper" else module.cascade.auxiliary
        assert leaping(auxiliary) == [blocks[f"layer{stage}.{block}"] for stage, block in row["leap_blocks"]]
        assert module.note == ""
    assert len(RELEASED) == len(plan.modules) - 1


@given(st.data(), st.integers(2, 60), st.integers(1, 6))
def test_leaps_lie_ahead_and_end_at_the_last_layer(data: st.DataObject, layers: int, count: int) -> None:
    starts = sorted({0, *data.draw(st.sets(st.integers(1, layers - 1), max_size=8))})
    layer = data.draw(st.integers(0, layers - 2))
    found = leaps(layer, count, starts, layers)
    assert list(found) == sorted(set(found))
    assert layer < found[0] <= found[-1] == layers - 1
    assert len(found) <= count
    later = [start for start in starts if start > layer]
    if len(later) < count:
        assert set(later) <= set(found)


@pytest.mark.parametrize(
    ("layer", "count", "starts", "layers", "expected"),
    [
        (0, 4, [0], 25, (8, 16, 24)),  # one stage, as in a ViT
        (3, 4, [0], 13, (6, 9, 12)),
        (0, 4, [0, 13], 25, (13, 18, 21, 24)),  # 24/8 = 3
        (0, 1, [0, 6, 11], 16, (15,)),
        (0, 2, [0, 6, 11], 16, (11, 15)),  # of the beginnings 6 and 11 the later
        (0, 4, [0, 1, 2, 3, 4, 5, 6, 7], 8, (2, 4, 5, 7)),  # each layer a stage: 7i/4, to even
        (14, 4, [0, 6, 11], 16, (15,)),
    ],
)
def test_leaps_by_hand(layer: int, count: int, starts: list[int], layers: int, expected: tuple[int, ...]) -> None:
    assert leaps(layer, count, starts, layers) == expected


def test_stages_begin_where_width_or_resolution_changes() -> None:
    network = analyse(cifar_resnet(32), (2, 3, 32, 32), torch.float32, leaf_policy(), max_cut=1)
    assert stage_starts(network) == (0, 6, 11)


# Copies ---------------------------------------------------------------------------------------------------------------


def trained(model: nn.Module) -> nn.Module:
    """Weights and statistics that no initializer gives."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.1, 0.9)
    return model


def test_copies_start_as_the_layers_they_copy() -> None:
    model = trained(cifar_resnet(14, width=4))
    local = localize(model, "mlaan", max_cut=1, mlm=False, seed=0, example_inputs=torch.empty(2, 3, 16, 16))
    auxiliary = local.local_modules[0].auxiliary
    assert isinstance(auxiliary, Leaps)
    assert leaping(local.plan.modules[0].auxiliary) == [3, 5, 6]
    x = torch.randn(2, 4, 16, 16)
    with torch.no_grad():
        expected = x
        for name in ("layer2.0", "layer3.0", "layer3.1"):
            expected = model.get_submodule(name).eval()(expected)
        assert torch.equal(auxiliary.eval().blocks(x), expected)
    mine = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    assert not mine & {t.data_ptr() for t in (*auxiliary.parameters(), *auxiliary.buffers())}


@pytest.mark.parametrize("method", METHODS)
def test_copies_cost_what_their_layers_do(method: str) -> None:
    """And the network behind them what the base's costs behind the layer copied last."""
    base, options = BASES[method]
    with torch.device("meta"):
        model = cifar_resnet(32)
    plan = localize(model, method, p=4, max_cut=1).plan
    plain = localize(model, base, max_cut=1, **options).plan
    end = plain.modules[-2].auxiliary  # of layer 14: the channels and resolution of layer 15
    assert end is not None
    for module, own in zip(plan.modules[:-1], plain.modules, strict=False):
        assert module.auxiliary is not None
        assert module.cascade is not None
        copied = [plan.layers[i] for i in leaping(module.auxiliary) if i is not None]
        assert module.auxiliary.params == sum(layer.params for layer in copied) + end.params
        assert module.auxiliary.macs == sum(layer.macs for layer in copied) + end.macs
        assert module.auxiliary.depth == len(copied) + end.depth
        assert module.cascade.auxiliary == own.auxiliary
        assert module.auxiliary.weight == (own.auxiliary.weight if own.auxiliary else 1)


@pytest.mark.parametrize("method", METHODS)
def test_plans_count_what_runs(method: str) -> None:
    with torch.device("meta"):
        model = cifar_resnet(20)
    chosen: list[dict[str, Any]] = [{}, {"variant": "released"}, {"leap": "both"}]
    for options in chosen:
        local = localize(model, method, modules=4, **options)
        assert step_flops(local).macs == local.plan.macs + local.plan.auxiliary_macs


def test_the_released_twin() -> None:
    local, _, _ = small("mlaan", variant="released")
    assert local.plan.options["k"] == 2
    for module in local.local_modules[:-1]:
        assert isinstance(module.cascaded, Leaps)
        assert not isinstance(module.auxiliary, Leaps)
        planned = module.plan.cascade
        assert planned is not None
        assert planned.auxiliary is not None
        kinds = [block.kind for block in planned.auxiliary.blocks]
        assert kinds == ["twin"] + ["free"] * (len(kinds) - 1)
        twin = module.cascaded.blocks[0]
        frozen = {name for name, p in module.cascaded.named_parameters() if not p.requires_grad}
        assert frozen == {f"blocks.0.pulled.{name}" for name, _ in twin.get_submodule("pulled").named_parameters()}
    first = local.local_modules[0].cascaded
    assert isinstance(first, Leaps)
    features = torch.randn(2, 4, 16, 16)
    one = copy.deepcopy(local.primary.get_submodule("layer2.0"))
    assert torch.equal(first.blocks[0](features), 2 * one(features))


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
    ({"variant": "code"}, "variant='code' is unknown"),
    ({"k": 1}, "k=1 is too small"),
    ({"k": 2.5}, "k=2.5 is too small or no whole number"),
    ({"p": 0}, "p=0 is too small"),
    ({"p": True}, "p=True"),
    ({"mlm": 1}, "mlm=1 is no truth value"),
    ({"lam": "off"}, "lam='off' is no truth value"),
    ({"momentum": 1.5}, "momentum=1.5 is no momentum"),
    ({"independent": -1}, "independent=-1 is no weight"),
    ({"cascaded": float("nan")}, "cascaded=nan is no weight"),
    ({"independent": 0, "cascaded": 0}, "leave no loss"),
    ({"leap": "none"}, "leap='none' is unknown"),
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
        model = timm.create_model("regnetx_004", num_classes=5)
    local = localize(model, method, modules=4, example_inputs=torch.empty(2, 3, 64, 64))
    assert all(p.is_meta for p in local.parameters())
    assert fake_step(local).violations == ()
