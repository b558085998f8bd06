"""Which layers leap, from what weights copies of them start, and what they cost."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from localize import localize
from localize.bench.flops import step_flops
from localize.compiler.inputs import leaf_policy
from localize.methods.mlaan.leap_choice import leaps
from localize.methods.mlaan.leaps import Leaps
from localize.models import cifar_resnet
from localize.plan.records import Auxiliary
from passes.adapt.resolution import stage_starts
from passes.pipeline import analyse
from tests.tools.mlaan import BASES, METHODS, small
from tests.tools.paths import REFERENCE

RELEASED = json.loads((REFERENCE / "baselines_cifar.json").read_text())["mlaan_leap_resnet32"]


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
