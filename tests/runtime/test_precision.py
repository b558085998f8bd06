"""What loops do beside backward: accumulation, clipping, GradScaler, averages, one optimizer a module.

The reference is a loop by hand over the model's own blocks, detached between them: same operations, so bit for bit.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from localize import LocalGraphModule, localize
from localize.runtime.optimizers import owned_parameters, per_module
from tests.tools.rules import images, small

Batch = tuple[Tensor, Tensor]
Loop = Callable[[LocalGraphModule, Batch, float], None]
WIDTHS = (3, 4, 6, 8, 8)


class Chain(nn.Module):
    """Four blocks and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        pairs = itertools.pairwise(WIDTHS)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU()) for i, o in pairs
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(WIDTHS[-1], 5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


@pytest.fixture
def local() -> LocalGraphModule:
    torch.manual_seed(0)
    made = localize(Chain(), "dgl", example_inputs=torch.zeros(2, 3, 8, 8), seed=0)
    assert [module.name for module in made.plan.modules[:3]] == ["blocks.0", "blocks.1", "blocks.2"]
    assert len(made.plan.modules) == 4
    return made


def batch(seed: int = 0, samples: int = 8) -> Batch:
    return images(samples, (8, 8), seed)


class ByHand:
    """The same network trained by hand."""

    def __init__(self, local: LocalGraphModule) -> None:
        twin = copy.deepcopy(local)
        self.whole = twin
        assert isinstance(twin.primary, Chain)
        self.model = twin.primary
        self.auxiliaries = [module.auxiliary for module in twin.local_modules]
        self.groups: list[list[nn.Parameter]] = []
        for block, auxiliary in zip(self.model.blocks, self.auxiliaries, strict=True):
            self.groups.append([*block.parameters(), *(auxiliary or self.model.classifier).parameters()])

    def losses(self, x: Tensor, y: Tensor) -> Iterator[Tensor]:
        for block, auxiliary in zip(self.model.blocks, self.auxiliaries, strict=True):
            out = block(x)
            logits = auxiliary(out) if auxiliary else self.model.classifier(self.model.pool(out).flatten(1))
            yield F.cross_entropy(logits, y)
            x = out.detach()

    def backward(self, x: Tensor, y: Tensor, factor: float = 1.0) -> None:
        for loss in self.losses(x, y):
            (loss * factor).backward()


def by_steps(local: LocalGraphModule, batch: Batch, factor: float) -> None:
    for out in local.steps(*batch):
        (out.loss * factor).backward()


def by_loss(local: LocalGraphModule, batch: Batch, factor: float) -> None:
    (local.loss(*batch) * factor).backward()


both_ways = pytest.mark.parametrize("loop", [by_steps, by_loss])


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2)


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """Weights and buffers, bit for bit."""
    left, right = one.state_dict(), other.state_dict()
    assert list(left) == list(right)
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def assert_learned(local: LocalGraphModule, hand: ByHand, before: dict[str, Tensor]) -> None:
    assert_same(local, hand.whole)
    assert all(not torch.equal(before[name], value) for name, value in local.named_parameters())


def weights(local: LocalGraphModule) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in local.named_parameters()}


# Accumulation


@both_ways
def test_accumulation_over_micro_batches(local: LocalGraphModule, loop: Loop) -> None:
    hand, before = ByHand(local), weights(local)
    mine, its = sgd(list(local.parameters())), sgd(list(hand.whole.parameters()))
    for step in range(3):
        x, y = batch(step)
        for some, labels in zip(x.split(2), y.split(2), strict=True):
            loop(local, (some, labels), 0.25)
            hand.backward(some, labels, 0.25)
        for optimizer in (mine, its):
            optimizer.step()
            optimizer.zero_grad()
    assert_learned(local, hand, before)


# Clipping

NORM = 0.05


@both_ways
@pytest.mark.parametrize("by", ["module", "global"])
def test_clipping(local: LocalGraphModule, loop: Loop, by: str) -> None:
    hand, before = ByHand(local), weights(local)
    mine, its = sgd(list(local.parameters())), sgd(list(hand.whole.parameters()))
    groups = [local.parameters_of(k) for k in range(4)] if by == "module" else [list(local.parameters())]
    theirs = hand.groups if by == "module" else [list(hand.whole.parameters())]
    for step in range(3):
        loop(local, batch(step), 1.0)
        hand.backward(*batch(step))
        for group, its_group in zip(groups, theirs, strict=True):
            norm = clip_grad_norm_(group, NORM)
            assert norm > NORM
            assert norm == clip_grad_norm_(its_group, NORM)
            found = torch.stack([p.grad.square().sum() for p in group if p.grad is not None]).sum().sqrt()
            torch.testing.assert_close(found, torch.tensor(NORM), rtol=1e-4, atol=0)
        for optimizer in (mine, its):
            optimizer.step()
            optimizer.zero_grad()
    assert_learned(local, hand, before)


def test_clipping_right_after_each_backward_is_clipping_at_the_end(local: LocalGraphModule) -> None:
    """A module's gradients are complete after its own backward."""
    other = copy.deepcopy(local)
    for k, out in enumerate_steps(local, batch()):
        out.backward()
        clip_grad_norm_(local.parameters_of(k), NORM)
    by_loss(other, batch(), 1.0)
    for k in range(4):
        clip_grad_norm_(other.parameters_of(k), NORM)
    for mine, its in zip(local.parameters(), other.parameters(), strict=True):
        assert mine.grad is not None
        assert its.grad is not None
        assert torch.equal(mine.grad, its.grad)


def enumerate_steps(local: LocalGraphModule, batch: Batch) -> Iterator[tuple[int, Tensor]]:
    numbers = itertools.count()
    for out in local.steps(*batch):
        yield next(numbers), out.loss


# GradScaler


@both_ways
def test_one_scaler(local: LocalGraphModule, loop: Loop) -> None:
    """Scales are powers of two, so that nothing is rounded."""
    hand, before = ByHand(local), weights(local)
    mine, its = sgd(list(local.parameters())), sgd(list(hand.whole.parameters()))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1)
    for step in range(3):
        if loop is by_steps:
            for out in local.steps(*batch(step)):
                scaler.scale(out.loss).backward()
        else:
            scaler.scale(local.loss(*batch(step))).backward()
        scaler.step(mine)
        scaler.update()
        hand.backward(*batch(step))
        its.step()
        mine.zero_grad()
        its.zero_grad()
    assert scaler.get_scale() == 2.0**11
    assert_learned(local, hand, before)


def scaled_per_module(
    local: LocalGraphModule,
    scalers: list[torch.amp.GradScaler],
    batch: Batch,
    optimizers: dict[str, torch.optim.Optimizer],
) -> None:
    """Run a step with a scaler, and an update, for each module."""
    names = [module.name for module in local.plan.modules]
    for k, loss in enumerate_steps(local, batch):
        scalers[k].scale(loss).backward()
        scalers[k].step(optimizers[names[k]])
        scalers[k].update()
        optimizers[names[k]].zero_grad()


def test_a_scaler_a_module(local: LocalGraphModule) -> None:
    hand, before = ByHand(local), weights(local)
    optimizers, its = dict(per_module(local, sgd)), sgd(list(hand.whole.parameters()))
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0 ** (k + 4)) for k in range(4)]
    for step in range(3):
        scaled_per_module(local, scalers, batch(step), optimizers)
        hand.backward(*batch(step))
        its.step()
        its.zero_grad()
    assert_learned(local, hand, before)


def test_an_overflow_skips_the_step_of_its_module_alone(local: LocalGraphModule) -> None:
    optimizers = dict(per_module(local, sgd))
    before = weights(local)
    scales = [2.0**4, 2.0**127, 2.0**4, 2.0**4]
    scalers = [torch.amp.GradScaler("cpu", init_scale=scale) for scale in scales]
    scaled_per_module(local, scalers, batch(), optimizers)
    assert [scaler.get_scale() for scaler in scalers] == [2.0**4, 2.0**126, 2.0**4, 2.0**4]
    skipped = {id(p) for p in local.parameters_of(1)}
    for name, parameter in local.named_parameters():
        assert torch.equal(before[name], parameter) == (id(parameter) in skipped), name


# Averages of weights

DECAY = 0.75


@both_ways
@pytest.mark.parametrize("what", ["local", "primary"])
def test_average_of_weights(local: LocalGraphModule, loop: Loop, what: str) -> None:
    """AveragedModel around the localized model, and around the plain one, batch norm's statistics included."""
    watched = local if what == "local" else local.primary
    average = AveragedModel(watched, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True)
    optimizer = sgd(list(local.parameters()))
    expected: dict[str, Tensor] = {}
    for step in range(4):
        loop(local, batch(step), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(watched)
        for name, value in watched.state_dict().items():
            if value.is_floating_point():
                now = value.clone()
                expected[name] = now if step == 0 else expected[name].lerp(now, 1 - DECAY)
    found = average.module.state_dict()
    assert "blocks.0.1.running_mean" in {name.removeprefix("primary.") for name in expected}
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []
    assert not torch.equal(found[next(iter(expected))], watched.state_dict()[next(iter(expected))])


def test_an_averaged_localized_model_infers_as_its_primary_does(local: LocalGraphModule) -> None:
    average = AveragedModel(local, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True)
    optimizer = sgd(list(local.parameters()))
    for step in range(2):
        by_steps(local, batch(step), 1.0)
        optimizer.step()
        average.update_parameters(local)
    plain = Chain()
    plain.load_state_dict(average.module.primary.state_dict())
    x = batch(9)[0]
    assert torch.equal(average.eval()(x), plain.eval()(x))
    assert not torch.equal(average(x), local.eval()(x))


# An optimizer a module


@pytest.mark.parametrize("factory", [sgd, adam])
def test_updates_right_after_each_backward(
    local: LocalGraphModule, factory: Callable[..., torch.optim.Optimizer]
) -> None:
    hand, before = ByHand(local), weights(local)
    optimizers, its = per_module(local, factory), factory(list(hand.whole.parameters()))
    assert list(optimizers) == [module.name for module in local.plan.modules]
    for step in range(3):
        for out in local.steps(*batch(step)):
            out.loss.backward()
            alive = {id(p) for p in local.parameters() if p.grad is not None}
            assert alive == {id(p) for group in optimizers[out.name].param_groups for p in group["params"]}
            optimizers.step(out.name)
        hand.backward(*batch(step))
        its.step()
        its.zero_grad()
    assert_learned(local, hand, before)


@pytest.mark.parametrize("method", ["auglocal", "predsim", "gn-dgl", "mlaan", "infopro+mlaan"])
@pytest.mark.parametrize("factory", [sgd, adam])
def test_module_by_module_is_all_at_once(method: str, factory: Callable[..., torch.optim.Optimizer]) -> None:
    """Also where losses reach earlier modules, and where copies follow layers that learn after them."""
    local, other = small(method), small(method)
    assert_same(local, other)
    optimizers, whole = per_module(local, factory), factory(list(other.parameters()))
    for step in range(3):
        for out in local.steps(*images(seed=step)):
            out.loss.backward()
            optimizers.step(out.name)
        for out in other.steps(*images(seed=step)):
            out.loss.backward()
        whole.step()
        whole.zero_grad()
    assert_same(local, other)
    assert not any(p.grad is not None for p in local.parameters())


@pytest.mark.parametrize("method", ["auglocal", "mlaan", "infopro+mlaan"])
def test_each_parameter_is_owned_once(method: str) -> None:
    local = small(method)
    owned = [id(p) for group in owned_parameters(local).values() for p in group]
    assert len(owned) == len(set(owned))
    assert set(owned) == {id(p) for p in local.parameters() if p.requires_grad}


def test_modules_that_own_nothing_are_left_alone(local: LocalGraphModule) -> None:
    for parameter in local.parameters_of(3):
        parameter.requires_grad_(False)
    optimizers = per_module(local, sgd)
    assert list(optimizers) == ["blocks.0", "blocks.1", "blocks.2"]
    before = weights(local)
    for out in local.steps(*batch()):
        out.loss.backward()
        optimizers.step(out.name)
    changed = {name for name, p in local.named_parameters() if not torch.equal(before[name], p)}
    assert changed == {name for name, p in local.named_parameters() if p.requires_grad}


def test_state_of_several_optimizers(local: LocalGraphModule) -> None:
    """Half of the run in other objects gives the same weights."""
    other = copy.deepcopy(local)
    straight, first = per_module(local, sgd), per_module(other, sgd)
    for step in range(4):
        second = first
        if step == 2:
            second = per_module(other, sgd)
            second.load_state_dict(copy.deepcopy(first.state_dict()))
            first = second
        for network, optimizers in ((local, straight), (other, second)):
            for out in network.steps(*batch(step)):
                out.loss.backward()
                optimizers.step(out.name)
    assert_same(local, other)
