"""GN-DGL: the plan, losses that reach one group's weights, and what it is equal to."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import timm
import torch
from torch import nn

from localize import LocalGraphModule, Plan, localize
from localize.bench.sweep.isolation import fake_step, reach
from localize.methods.gn_dgl.auxiliary import GroupLosses, mean_prediction
from localize.methods.gn_dgl.options import Options
from localize.methods.networks.local_loss import Batch
from localize.models import CifarResNet, cifar_resnet
from passes.errors import InputError, LocalizeError, MethodError, SplitError
from passes.ir import TensorSpec
from tests.models.wide import TwoWays
from tests.models.zoo import assert_same, gradients

Batches = tuple[torch.Tensor, torch.Tensor]


def _local(model: nn.Module, batch: Batches, **options: Any) -> LocalGraphModule:
    options = {"modules": 2, "max_cut": 1, "seed": 0, "example_inputs": batch[0], **options}
    local = localize(model, options.pop("method", "gn-dgl"), **options)
    local.train()
    return local


def _step(local: LocalGraphModule, batch: Batches) -> list[float]:
    losses = []
    for out in local.steps(*batch):
        out.loss.backward()
        losses.append(float(out.loss.detach()))
    return losses


PARITY = {
    (2, 2): (239912, [2 * 1189120, 2 * 1197312]),
    (4, 2): (443856, [2 * 1185024, 2 * 1189120, 2 * 1197312, 2 * 1197312]),
    (8, 4): (1449024, [4 * n for n in (*[1185024] * 3, *[1189120] * 2, *[1197312] * 3)]),
}
"""Of the released code: parameters of all auxiliary networks, and multiply-accumulates of each module's."""


@pytest.mark.parametrize(("count", "groups"), PARITY)
def test_auxiliary_networks_are_those_of_the_released_code(count: int, groups: int) -> None:
    params, macs = PARITY[count, groups]
    with torch.device("meta"):
        model = cifar_resnet(32)
    local = localize(model, "gn-dgl", groups=groups, modules=count, example_inputs=torch.empty(2, 3, 32, 32))
    plan = local.plan
    assert plan.auxiliary_params == params
    assert [module.auxiliary.macs for module in plan.modules[:-1] if module.auxiliary] == macs
    assert sum(p.numel() for module in local.local_modules for p in module.parameters()) == params
    assert [layers.layers for layers in plan.modules[-2:]] == [plan.modules[-2].layers, ()]
    assert plan.modules[-2].layers[-1] == 15
    assert plan.modules[-1].parameters == ("fc.weight", "fc.bias")
    assert plan.original is not None
    assert (plan.original.params, plan.params) == (466906, sum(p.numel() for p in local.primary.parameters()))
    assert fake_step(local).violations == ()


@pytest.mark.parametrize("auxiliary", ["conv", "dgl", "predsim"])
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_each_groups_loss_reaches_its_own_slice(batch: Batches, auxiliary: str, stop_gradient: bool) -> None:
    """Group i's channels of every weight get a gradient from loss i and no other; the rest of the network none."""
    local = _local(cifar_resnet(8, width=8), batch, auxiliary=auxiliary, stop_gradient=stop_gradient, diversity=0)
    value = batch[0]
    for module in local.local_modules[:-1]:
        network = module.auxiliary
        assert isinstance(network, GroupLosses)
        features = module(value)
        names = module.plan.parameters
        weights = [local.primary.get_parameter(name) for name in names]
        batched = Batch(*batch, local.criterion, "")
        for group in range(2):
            part = network.groups[group]
            supervised: Any = getattr(part, "supervise", None)
            read = network.read_by(group, features)
            loss = supervised(batched, read)[1] if supervised else batched.loss(part(read))
            other = [*network.groups[1 - group].parameters()]
            grads = torch.autograd.grad(loss, [*weights, *other], retain_graph=True, allow_unused=True)
            assert all(grad is None for grad in grads[len(weights) :])
            for name, grad in zip(names, grads[: len(weights)], strict=True):
                assert grad is not None
                reached = (grad.flatten(1) if grad.ndim > 1 else grad[:, None]).ne(0).any(1)
                half = len(reached) // 2
                own = reached[:half] if group == 0 else reached[half:]
                assert own.float().mean() > 0.5, name
                assert int(reached.sum()) == int(own.sum()), name
        value = features.detach()


def test_a_modules_loss_is_the_sum_over_groups(batch: Batches) -> None:
    local = _local(cifar_resnet(8, width=8), batch, diversity=0.25, temperature=2.0)
    module = local.local_modules[0]
    network = module.auxiliary
    assert isinstance(network, GroupLosses)
    x, y = batch
    logits = network.by_group(module(x))
    wrong = [torch.softmax(v / 2, 1).masked_fill(torch.eye(10)[y].bool(), 0) for v in logits]
    alike = torch.cosine_similarity(wrong[0], wrong[1]).mean()
    expected = sum(nn.functional.cross_entropy(v, y) for v in logits) + 0.25 * alike
    found = next(iter(local.steps(x, y)))
    assert torch.allclose(found.loss, torch.as_tensor(expected), atol=1e-6)
    mean = torch.stack([v.softmax(1) for v in logits]).mean(0)
    assert torch.allclose(found.logits.softmax(1), mean, atol=1e-6)


def test_two_groups_read_slices_of_the_value_detached() -> None:
    spec = TensorSpec((2, 6, 1, 1), layout="NCHW")
    losses = GroupLosses([nn.Identity()] * 2, [((0, 1), (3, 5)), ((1, 3),)], spec, True, 0, 1)
    alone = GroupLosses([nn.Identity()] * 2, [((0, 1), (3, 5)), ((1, 3),)], spec, False, 0, 1)
    x = torch.randn(2, 6, 1, 1, requires_grad=True)
    for group, own in enumerate(([0, 3, 4, 5], [1, 2, 5])):
        read = losses.read_by(group, x)
        assert torch.equal(read, x)
        (grad,) = torch.autograd.grad(read.sum(), x)
        assert torch.equal(grad[0, :, 0, 0].nonzero()[:, 0], torch.tensor(own))
        assert torch.equal(alone.read_by(group, x), x[:, own])


def test_one_group_is_dgl(batch: Batches) -> None:
    options: dict[str, Any] = {"auxiliary": "dgl", "groups": 1, "head": "joint", "modules": 3}
    model = cifar_resnet(8, width=4)
    ours, theirs = _local(model, batch, **options), _local(copy.deepcopy(model), batch, method="dgl", modules=3)
    assert ours.primary is model
    assert ours.plan.original is None
    assert _step(ours, batch) == _step(theirs, batch)
    assert_same(gradients(ours), gradients(theirs))


def test_one_group_is_predsim(batch: Batches) -> None:
    model = cifar_resnet(8, width=4)
    ours = _local(model, batch, auxiliary="predsim", groups=1, head="joint")
    theirs = _local(copy.deepcopy(model), batch, method="predsim")
    assert _step(ours, batch) == _step(theirs, batch)
    assert_same(gradients(ours), gradients(theirs))


def test_one_module_is_backpropagation(batch: Batches) -> None:
    model = cifar_resnet(8, width=4)
    ours, theirs = (
        _local(model, batch, head="joint", modules=1),
        _local(copy.deepcopy(model), batch, method="bp", modules=1),
    )
    assert _step(ours, batch) == _step(theirs, batch)
    assert_same(gradients(ours), gradients(theirs))


def test_the_fused_loss_gives_the_gradients_of_the_steps(batch: Batches) -> None:
    first, second = (_local(cifar_resnet(8, width=4), batch) for _ in range(2))
    second.load_state_dict(first.state_dict())
    _step(first, batch)
    second(*batch).backward()
    assert_same(gradients(second), gradients(first))


def test_double_precision_copies_and_seeds(batch: Batches) -> None:
    model = cifar_resnet(8, width=4)
    before = copy.deepcopy(model.state_dict())
    first, second = (_local(model, batch, modules=None) for _ in range(2))
    assert len(first.plan.modules) == 5
    assert_same(dict(first.state_dict()), dict(second.state_dict()))
    assert_same(model.state_dict(), before)
    assert isinstance(first.primary, CifarResNet)
    twin = copy.deepcopy(first).double()
    losses = _step(twin, (batch[0].double(), batch[1]))
    assert losses == pytest.approx(_step(first, batch), rel=1e-3)


def test_the_plan_says_what_was_made(batch: Batches) -> None:
    local = _local(cifar_resnet(8, width=4), batch, groups=(2, 4))
    plan = local.plan
    assert Plan.from_json(plan.to_json()) == plan
    table = str(plan)
    assert "(made of 5.21k parameters" in table
    assert "2 groups, each d=3: conv3x3(8)/2 head + 0.5 * diversity" in table
    assert "4 groups" in table
    assert "2 classifier" in table
    first, second = (module.auxiliary for module in plan.modules[:2])
    assert first is not None
    assert second is not None
    assert first.groups == (((0, 2),), ((2, 4),))
    assert len(second.groups) == 4
    assert Options(groups=[2, 4]) == Options(groups=(2, 4))


def test_shared_parameters_are_named(batch: Batches) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    local = _local(model, batch, modules=[1, len(localize(model, example_inputs=batch[0]).plan.layers) - 1])
    assert local.plan.modules[0].note == ""
    assert local.plan.modules[1].note == "trained by all groups: 1.weight, 1.bias, 2.weight, 2.bias"
    assert reach(local, *batch).violations == ()


def test_vgg6a_is_split_layer_by_layer(batch: Batches) -> None:
    """Section 4.1: groups (2, 4, 2) times G/2 in the first three convolutions, PredSim's losses, a loss a layer."""
    widths = (8, 16, 32, 32)
    layers: list[nn.Module] = []
    for before, width in zip((3, *widths), widths, strict=False):
        layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))
    local = _local(model, batch, modules=None, groups=(4, 8, 4, 1), auxiliary="predsim")
    found = [module.auxiliary for module in local.plan.modules]
    assert [len(auxiliary.groups) if auxiliary else None for auxiliary in found] == [4, 8, 4, 0, None]
    # Layer by layer nothing stands behind a module's first convolution: no layer changes.
    assert local.plan.original is not None
    assert local.plan.params == local.plan.original.params
    assert reach(local, *batch).violations == ()
    assert all(math.isfinite(loss) for loss in _step(local, batch))
    assert "0.99 * similarity + 0.5 * diversity" in str(local.plan)


def test_the_ensemble_weights_depths(batch: Batches) -> None:
    for method in ("gn-dgl", "dgl"):
        local = _local(cifar_resnet(8, width=4), batch, method=method, modules=3)
        found = local.predictions(batch[0])
        weights = [1, 2, 4, 8][: len(found)]
        expected = torch.stack([w * v.softmax(1) for w, v in zip(weights, found, strict=True)]).sum(0) / sum(weights)
        ensemble = local.ensemble(batch[0])
        assert torch.allclose(ensemble, expected, atol=1e-6)
        assert torch.allclose(ensemble.sum(1), torch.ones(8))
        assert torch.equal(found[-1], local.eval()(batch[0]))


def test_an_ensemble_needs_logits_everywhere(batch: Batches) -> None:
    local = localize(
        cifar_resnet(8, num_classes=7, width=4), "dgl", outputs=10, modules=2, example_inputs=batch[0], seed=0,
        output_criterion=lambda out, y: out.sum(),
    )  # fmt: skip
    with pytest.raises(LocalizeError, match=r"do not predict the same classes.*\(8, 7\)"):
        local.ensemble(batch[0])


def test_the_mean_of_softmaxes_as_logits() -> None:
    logits = [torch.randn(3, 5, dtype=torch.float64) for _ in range(3)]
    assert torch.allclose(mean_prediction(logits).softmax(1), torch.stack([v.softmax(1) for v in logits]).mean(0))


def test_a_classifier_without_parameters_stays_with_the_last_layers(batch: Batches) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )  # fmt: skip
    for parameter in model[4].parameters():
        parameter.requires_grad_(False)
    local = _local(model, batch, modules=None)
    assert reach(local, *batch).violations == ()


REFUSED: dict[str, tuple[dict[str, Any], type[LocalizeError], str]] = {
    "groups": ({"groups": 0}, MethodError, "groups must be an integer >= 1, or one for each module, got 0"),
    "kinds": (
        {"groups": (2, "4")}, MethodError,
        "groups must be an integer >= 1, or one for each module, got .2, '4'.",
    ),
    "count": ({"groups": (2, 2, 2)}, MethodError, r"groups=\[2, 2, 2\] is for 3 local modules, and there are 2"),
    "joint": ({"groups": (2, 2), "head": "joint"}, MethodError, "splits the last local module.*reads all groups"),
    "width": ({"groups": 3}, SplitError, r"Conv2d cannot be split in 3 groups .*in conv1.*4 output channels"),
    "head": ({"head": "none"}, MethodError, "head must be 'decoupled' or 'joint', got 'none'"),
    "auxiliary": ({"auxiliary": "mlp"}, MethodError, "auxiliary must be 'conv', 'dgl' or 'predsim', got 'mlp'"),
    "diversity": ({"diversity": -1}, MethodError, "diversity must be a number >= 0, got -1"),
    "temperature": ({"temperature": 0}, MethodError, "temperature must be a number > 0, got 0"),
    "hidden": ({"hidden": 0}, MethodError, "hidden must be an integer >= 1, got 0"),
    "stop_gradient": ({"stop_gradient": 1}, MethodError, "stop_gradient must be True or False, got 1"),
    "unknown": ({"tau": 1}, MethodError, "has no option 'tau'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_options_are_named(name: str, batch: Batches) -> None:
    options, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message):
        _local(cifar_resnet(8, width=4), batch, **options)


def test_other_targets_need_another_loss(batch: Batches) -> None:
    x, y = batch
    soft = nn.functional.one_hot(y, 10).float()
    with pytest.raises(InputError, match=r"needs class indices.*diversity=0"):
        _step(_local(cifar_resnet(8, width=4), batch), (x, soft))
    hard, same = (_local(cifar_resnet(8, width=4), batch, diversity=0) for _ in range(2))
    same.load_state_dict(hard.state_dict())
    assert _step(hard, batch) == pytest.approx(_step(same, (x, soft)), rel=1e-5)


def test_maps_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 5, 1))
    with pytest.raises(MethodError, match=r"method 'gn-dgl' is for networks that classify images"):
        localize(model, "gn-dgl", example_inputs=torch.empty(2, 3, 16, 16))


TIMM: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "mobilenetv2_100": {},
    "efficientnet_b0": {},
    "convnext_atto": {},
    "densenet121": {"block_config": (2, 2, 3, 2), "growth_rate": 16},
}


QUICK = ("resnet18", "densenet121")
"""By default, since one step of all of them is taken in tests/contracts/test_every_method.py."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.registry]) for n in TIMM])
def test_models_of_timm_take_a_step(name: str) -> None:
    model = timm.create_model(name, num_classes=10, **TIMM[name])
    batch = torch.randn(2, 3, 64, 64), torch.tensor([1, 7])
    local = _local(model, batch, modules=3, max_cut=None, verify=False)
    found = reach(local, *batch)
    assert (found.violations, found.untrained) == ((), ())
    assert all(math.isfinite(loss) for loss in _step(local, batch))
    assert local.plan.original is not None
    assert local.plan.params < 0.7 * local.plan.original.params
    assert local.primary(batch[0]).shape == (2, 10)


def test_modules_of_several_groups_end_where_one_tensor_crosses() -> None:
    batch = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    with pytest.raises(MethodError, match=r"local module 0 .* ends in a cut of 2 tensors.*merged over all channels"):
        _local(TwoWays(), batch, max_cut=2)
    found = _local(TwoWays(), batch, groups=1, max_cut=2)
    assert reach(found, *batch).violations == ()


def test_attention_is_refused() -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64, depth=4)
    batch = torch.randn(2, 3, 64, 64), torch.tensor([1, 7])
    message = r"scaled_dot_product_attention of Attention cannot be split in 2 groups of channels \(in blocks.0.attn"
    with pytest.raises(SplitError, match=message):
        _local(model, batch, verify=False)
    whole = _local(model, batch, groups=1, verify=False)
    assert reach(whole, *batch).violations == ()
