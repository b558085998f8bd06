"""Methods from outside this package: what localize() takes, and what it says where such a method is wrong."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import nn

from localize import LocalGraphModule, MethodError, Plan, localize
from localize.methods import (
    Auxiliary,
    Context,
    Initializer,
    LocalModulePlan,
    Method,
    Place,
    build_linear,
    get_method,
    plan_modules,
)
from localize.models import cifar_resnet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the rule of these tests."""

    bias: bool = True


def plan(context: Context, options: Options) -> tuple[LocalModulePlan, ...]:
    """Plan a linear classifier for each module."""

    def auxiliary(place: Place) -> Auxiliary:
        channels, outputs = context.network.layers[place.layer].output.channels, context.prediction.outputs
        weights = channels * outputs
        return Auxiliary((), 1, weights + outputs, weights, (), f"pool > linear({channels}, {outputs})")

    return plan_modules(context, auxiliary)


def build(context: Context, module: LocalModulePlan, options: Options, draw: Initializer) -> nn.Module:
    """Build a linear classifier."""
    channels = context.network.layers[module.layers[-1]].output.channels
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(pool, build_linear(channels, context.prediction.outputs, draw))


RULE = Method(name="outside", Options=Options, plan=plan, build=build)


def small(method: str | Method[Any], **options: Any) -> LocalGraphModule:
    torch.manual_seed(0)
    return localize(cifar_resnet(8), method, example_inputs=torch.empty(2, 3, 16, 16), max_cut=1, seed=0, **options)


def test_a_rule_of_ones_own_is_planned_trained_and_written() -> None:
    local = small(RULE, bias=False, memory_budget="1GB", batch_size=4)
    assert (local.plan.method, local.plan.options) == ("outside", {"bias": False})
    assert Plan.from_json(local.plan.to_json()) == local.plan
    local.loss(torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])).backward()
    assert all(p.grad is not None for p in local.parameters())
    forecast = local.plan.memory(4)
    assert forecast.method == "outside"
    assert [rival.method for rival in forecast.rivals] == ["bp", "checkpoint"]


def test_its_auxiliary_networks_have_the_planned_parameters() -> None:
    local = small(RULE)
    assert [sum(p.numel() for p in m.auxiliary.parameters()) for m in local.local_modules if m.auxiliary] == [
        m.auxiliary.params for m in local.plan.modules if m.auxiliary
    ]


def test_copies_keep_the_rule() -> None:
    local = small(RULE)
    twin = copy.deepcopy(local)
    assert twin.plan == local.plan
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(twin.eval()(images), local.eval()(images))


def test_a_method_of_this_package_may_be_given_as_an_object() -> None:
    by_name, by_object = small("dgl"), small(get_method("dgl"))
    assert by_name.plan == by_object.plan
    assert all(map(torch.equal, by_name.state_dict().values(), by_object.state_dict().values()))


def test_a_method_with_importable_functions_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(RULE)) == RULE


def _changed(change: Callable[[tuple[LocalModulePlan, ...]], Any]) -> Method[Options]:
    return dataclasses.replace(RULE, plan=lambda context, options: change(plan(context, options)))


def _building(network: Callable[[], Any]) -> Method[Options]:
    return dataclasses.replace(RULE, build=lambda *_: network())


def _three(context: Context, options: Options, draw: Initializer) -> Any:
    return 3


WRONG: dict[str, tuple[Method[Options], str]] = {
    "no tuple": (_changed(lambda modules: None), "it returned None, not a tuple of LocalModulePlan"),
    "nothing": (_changed(lambda modules: ()), "the indices of its 0 modules"),
    "a module lost": (_changed(lambda modules: modules[1:]), r"the indices of its 3 modules are \[1, 2, 3\]"),
    "a layer lost": (
        _changed(lambda modules: (dataclasses.replace(modules[0], layers=()), *modules[1:])),
        "the network has local layers 0 to 3",
    ),
    "a network too many": (
        _changed(lambda m: (*m[:-1], dataclasses.replace(m[-1], auxiliary=m[0].auxiliary))),
        "the last module has an auxiliary network",
    ),
    "a network too few": (
        _changed(lambda m: (dataclasses.replace(m[0], auxiliary=None), *m[1:])),
        "module 0 has no auxiliary network, and is not the last",
    ),
    "no build": (Method(name="outside", Options=Options, plan=plan), "has no function for it"),
    "no module": (_building(lambda: None), r"for module 0 \(conv1\) must be an nn.Module, got NoneType"),
    "another shape": (
        _building(lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())),
        r"must return 10 logits, a tensor of shape \(2, 10\), got \(2, 16\)",
    ),
    "no tensor": (_building(lambda: nn.MultiheadAttention(1, 1)), "must run on the module's output 16x16x16"),
    "other channels": (_building(lambda: nn.Conv2d(5, 10, 1)), "must run on the module's output .* RuntimeError"),
    "prepare": (dataclasses.replace(RULE, prepare=_three), "must return an nn.Module or None, got int"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_about_a_rule_is_named(name: str) -> None:
    method, message = WRONG[name]
    with pytest.raises(MethodError, match=message) as error:
        small(method)
    assert "outside" in str(error.value) or name == "no build"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Method(name="", Options=Options, plan=plan),
            "the name of a method must be a non-empty string, got ''",
        ),
        (lambda: Method[Any](name="x", Options=dict, plan=plan), "Options of method 'x' must be a dataclass"),
        (lambda: small(RULE, tau=1), "method 'outside' has no option 'tau'. Its options: bias"),
        (lambda: small(cast("Any", RULE.build)), "method must be a name or a localize.methods.Method, got function"),
    ],
)
def test_a_method_that_cannot_be_one_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        make()
