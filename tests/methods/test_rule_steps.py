"""DGL, PredSim, InfoPro, and AugLocal with InfoPro's loss: what a step computes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from localize import InputError, LocalGraphModule, MethodError, Plan, localize
from localize.bench.sweep.isolation import reach
from localize.models import cifar_resnet
from tests.models.dense_models import Segmenter, UNet
from tests.models.zoo import assert_same, gradients
from tests.tools.rules import DECODING, every_rule, images, networks, small


def features(local: LocalGraphModule, x: torch.Tensor) -> torch.Tensor:
    """Return the output of the first module."""
    model = copy.deepcopy(local.primary)
    return model.relu(model.bn1(model.conv1(x)))  # type: ignore[no-any-return]


def slow_loss(method: str, parts: list[nn.Module], h: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Compute the local loss of the first module as the papers write it."""
    entropy = F.cross_entropy(parts[0](h), y)
    if method == "dgl":
        return entropy
    if method == "predsim":
        rows = parts[1](h).flatten(2).std(2)
        found = torch.stack([F.cosine_similarity(a - a.mean(), rows - rows.mean(1, True)) for a in rows])
        labels = F.one_hot(y, 5).float() - 0.2
        wanted = torch.stack([F.cosine_similarity(a, labels) for a in labels])
        return 0.01 * entropy + 0.99 * F.mse_loss(found, wanted)
    return 0.05 * entropy + 5 * F.binary_cross_entropy(parts[1](h).sigmoid(), x * 0.25 + 0.5)


@every_rule
def test_the_first_loss_by_hand(method: str) -> None:
    x, y = images()
    normalization = {"mean": 0.5, "std": (0.25, 0.25, 0.25)} if method in DECODING else {}
    local = small(method, **normalization)
    auxiliary = local.local_modules[0].auxiliary
    assert auxiliary is not None
    expected = slow_loss(method, networks(copy.deepcopy(auxiliary)), features(local, x), x, y)
    found = next(local.steps(x, y))
    torch.testing.assert_close(found.loss, expected, rtol=1e-4, atol=1e-5)


@every_rule
def test_one_scalar_gives_the_same_gradients(method: str) -> None:
    x, y = images()
    local, twin = small(method), small(method)
    for out in local.steps(x, y):
        out.loss.backward()
    twin.loss(x, y).backward()
    assert_same(gradients(twin), gradients(local))
    assert len(gradients(local)) == len(list(local.parameters()))


@every_rule
def test_one_module_is_backpropagation(method: str) -> None:
    x, y = images()
    local, yardstick = small(method, modules=1), small("bp")
    for network in (local, yardstick):
        network.loss(x, y).backward()
    assert_same(gradients(local), gradients(yardstick))


@every_rule
def test_seeds_and_copies(method: str) -> None:
    local, x = small(method), images()[0]
    twin, copied, other = small(method), copy.deepcopy(local), small(method, seed=1)
    assert_same(dict(twin.state_dict()), dict(local.state_dict()))
    assert_same(dict(copied.state_dict()), dict(local.state_dict()))
    drawn = [not torch.equal(a, b) for a, b in zip(local.parameters(), other.parameters(), strict=True)]
    assert any(drawn)
    losses = [[out.loss.detach() for out in each.steps(*images())] for each in (local, copied)]
    assert losses[0] == losses[1]
    local.eval()
    exits = local.predictions(x)
    assert [tuple(logits.shape) for logits in exits] == [(4, 5)] * len(local.plan.modules)


@every_rule
def test_double_precision(method: str) -> None:
    x, y = images()
    local = small(method).to(torch.float64)
    for out in local.steps(x.double(), y):
        assert out.loss.dtype == torch.float64
        out.loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in local.parameters())


@every_rule
def test_autocast(method: str) -> None:
    x, y = images()
    local = small(method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        steps = [out.loss for out in local.steps(x, y)]
    plain = [out.loss for out in small(method).steps(x, y)]
    for found, expected in zip(steps, plain, strict=True):
        torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.02)
    torch.stack([loss.float() for loss in steps]).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in local.parameters())


@pytest.mark.parametrize("method", ["dgl", "infopro", "auglocal+infopro"])
def test_images_of_another_size(method: str) -> None:
    local, (x, y) = small(method), images(size=(24, 20))
    for out in local.steps(x, y):
        assert bool(out.loss.isfinite())


def test_predsim_is_for_images_of_one_size() -> None:
    x, y = images(size=(64, 64))
    with pytest.raises(InputError, match=r"does not run on an input of 3x64x64.*localized for 3x16x16"):
        list(small("predsim").steps(x, y))


def test_frozen_layers_go_with_the_next_that_learn() -> None:
    model = cifar_resnet(8, num_classes=5, width=4)
    for part in (model.conv1, model.bn1, model.layer1):
        part.requires_grad_(False)
    local = localize(model, "dgl", max_cut=1, example_inputs=images()[0])
    assert [module.layers for module in local.plan.modules] == [(0, 1, 2), (3,)]


def test_zero_init() -> None:
    """Classifiers start at zero: the criterion is log 5, and nothing but similarity teaches at first."""
    x, y = images()
    local = small("predsim", zero_init=True, beta=0.0)
    for out in local.steps(x, y):
        if out.name != local.plan.modules[-1].name:
            assert float(out.loss.detach()) == pytest.approx(math.log(5), abs=1e-6)
    twin = copy.deepcopy(local)
    assert_same(dict(twin.state_dict()), dict(local.state_dict()))


def test_soft_labels() -> None:
    x, y = images()
    hard, soft = small("predsim"), small("predsim")
    pairs = zip(hard.steps(x, y), soft.steps(x, F.one_hot(y, 5).float()), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a.loss, b.loss)


# Maps -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", DECODING)
@pytest.mark.parametrize("name", ["unet", "tokens"])
def test_maps_of_logits(method: str, name: str) -> None:
    model: nn.Module = UNet(transposed=False) if name == "unet" else Segmenter((16, 24))
    x, _ = images(size=(16, 24))
    y = torch.randint(4, (4, 16, 24), generator=torch.Generator().manual_seed(0))
    local = localize(model, method, d=2, seed=0, example_inputs=x)
    assert len(local.plan.modules) > 1
    assert Plan.from_json(local.plan.to_json()) == local.plan
    assert reach(local, x, y).violations == ()
    for planned, module in zip(local.plan.modules[:-1], local.local_modules, strict=False):
        assert planned.auxiliary is not None
        assert sum(p.numel() for p in module.parameters()) == planned.auxiliary.params
    assert {tuple(out.logits.shape) for out in local.steps(x, y)} == {(4, 4, 16, 24)}


@pytest.mark.parametrize("method", ["dgl", "predsim"])
def test_maps_are_refused_by_name(method: str) -> None:
    with pytest.raises(MethodError, match=f"method '{method}' is for networks that classify images.*4 logits at 16x16"):
        localize(UNet(transposed=False), method, example_inputs=images()[0])
