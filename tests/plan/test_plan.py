"""Plan: frozen, comparable, printable, to JSON and back."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from localize import Plan, PlanError, localize
from localize.models import cifar_resnet


def plan(d: int = 3) -> Plan:
    return localize(cifar_resnet(8), d=d, max_cut=1, example_inputs=torch.empty(2, 3, 32, 32)).plan


def test_json_round_trip() -> None:
    for one in (plan(), localize(cifar_resnet(8), "bp").plan):
        again = Plan.from_json(one.to_json())
        assert again == one
        assert again.to_json() == one.to_json()


def test_plans_compare_by_value() -> None:
    assert plan() == plan()
    assert plan() != plan(d=2)


def test_a_plan_is_frozen() -> None:
    one = plan()
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.method = "bp"  # type: ignore[misc]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', "null"])
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="not a plan"):
        Plan.from_json(text)


def test_another_format_version_is_refused() -> None:
    data = json.loads(plan().to_json())
    with pytest.raises(PlanError, match="format 99"):
        Plan.from_json(json.dumps({**data, "format": 99}))


TABLE = """\
CifarResNet: auglocal(d=3, tau=0.5, last=joint, head_norm=True, pool=average, head=linear, selection=uniform, downsampling=deferred, aux_init=fresh), input 3x32x32
L=4 local layers in K=2 local modules; primary 78k parameters, 12.5M MACs; auxiliary networks 72.9k parameters, 7.34M MACs
module            layers            output    params   MACs  act. bytes  auxiliary network  aux. params  aux. MACs
----------------  ----------------  --------  ------  -----  ----------  -----------------  -----------  ---------
0 conv1           0                 16x32x32     464   442k        197k  d=3: 2/2 3/2 head        72.9k      7.34M
1 layer1..layer3  1-3 + classifier  10         77.6k  12.1M        901k  (output loss)"""  # noqa: E501


def test_a_plan_prints_as_a_table() -> None:
    assert str(plan()) == TABLE


def test_totals_are_sums() -> None:
    model = cifar_resnet(8)
    local = localize(model, d=2)
    assert local.plan.params == sum(p.numel() for p in model.parameters())
    auxiliary = [p for module in local.local_modules for p in module.parameters()]
    assert local.plan.auxiliary_params == sum(p.numel() for p in auxiliary)
    assert local.plan.macs == sum(layer.macs for layer in local.plan.layers) + local.plan.classifier_macs


@pytest.mark.parametrize("method", ["auglocal", "mlaan", "bp"])
def test_totals_of_modules_add_up_to_those_of_the_plan(method: str) -> None:
    found = localize(cifar_resnet(8), method, example_inputs=torch.empty(2, 3, 32, 32), seed=0).plan
    totals = [found.module_totals(module.index) for module in found.modules]
    assert sum(each.params for each in totals) == found.params
    assert sum(each.macs for each in totals) == found.macs
    assert sum(each.activation_bytes for each in totals) == sum(layer.activation_bytes for layer in found.layers)
    assert sum(each.auxiliary_params for each in totals) == found.auxiliary_params
    assert sum(each.auxiliary_macs for each in totals) == found.auxiliary_macs
