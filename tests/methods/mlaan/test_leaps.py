"""The pull of copies to their layers, after every step of an optimizer that holds them."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks

from localize import LocalGraphModule, localize
from localize.methods.mlaan import leaps
from localize.methods.mlaan.leaps import Leaps
from tests.models.zoo import assert_same
from tests.tools.mlaan import small

Pair = tuple[str, str]


def pairs(local: LocalGraphModule) -> list[Pair]:
    """Names of copies that are pulled, and of what they are pulled to."""
    found = []
    for path, module in local.named_modules():
        if isinstance(module, Leaps):
            found += [(f"{path}.{copied}", f"primary.{live}") for copied, _, live in module.pulls]
    return found


def values(local: LocalGraphModule) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in local.named_parameters()}


class Toy(nn.Module):
    """Linear layers of one width, so that copies have all their tensors' shapes; behind the stem all are one stage."""

    def __init__(self, layers: int = 5) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(layers))
        self.fc = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        logits: torch.Tensor = self.fc(x)
        return logits


def toy(**options: Any) -> tuple[LocalGraphModule, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x, y = torch.randn(8, 6), torch.arange(8) % 3
    local = localize(Toy(), "mlaan", seed=0, example_inputs=x, granularity="block", momentum=0.9, **options)
    return local.train(), x, y


@pytest.mark.parametrize("options", [{}, {"mlm": False}, {"leap": "both"}, {"p": 1, "leap": "cascaded"}], ids=str)
def test_copies_follow_the_closed_form(options: dict[str, Any]) -> None:
    """c_n = m^n c_0 + sum over steps i of (1 - m) m^(n-i) w_i - lr m^(n-i+1) g_i, with w_i as step i leaves it."""
    local, x, y = toy(**options)
    m, rate, steps = 0.9, 0.5, 12
    start = values(local)
    optimizer = torch.optim.SGD(local.parameters(), rate)
    lives: list[dict[str, torch.Tensor]] = []
    slopes: list[dict[str, torch.Tensor]] = []
    for _ in range(steps):
        optimizer.zero_grad()
        local.loss(x, y).backward()
        slopes.append({name: p.grad.detach().double() for name, p in local.named_parameters() if p.grad is not None})
        optimizer.step()
        lives.append({name: value.double() for name, value in values(local).items()})
    followed = pairs(local)
    assert len(followed) >= 8
    for copied, live in followed:
        expected = m**steps * start[copied].double()
        for i in range(1, steps + 1):
            expected += (1 - m) * m ** (steps - i) * lives[i - 1][live]
            expected -= rate * m ** (steps - i + 1) * slopes[i - 1][copied]
        torch.testing.assert_close(local.get_parameter(copied).double(), expected, rtol=1e-6, atol=1e-6)
        drift = (local.get_parameter(copied).detach() - start[copied]).abs().max()
        assert float(drift) > 1e-3


def test_in_steps_as_in_loss() -> None:
    found = []
    for fused in (True, False):
        local, x, y = toy()
        optimizer = torch.optim.SGD(local.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            if fused:
                local.loss(x, y).backward()
            else:
                for out in local.steps(x, y):
                    out.loss.backward()
            optimizer.step()
        found.append(values(local))
    assert_same(*found)


def test_momentum_zero_and_one() -> None:
    local, x, y = small("mlaan", momentum=0.0)
    local.loss(x, y).backward()
    torch.optim.SGD(local.parameters(), 0.1).step()
    assert all(torch.equal(local.get_parameter(a), local.get_parameter(b)) for a, b in pairs(local))
    free, _, _ = small("mlaan", momentum=1.0)
    plain, _, _ = small("mlaan", momentum=1.0)
    leaps._PULLED.pop(plain)
    for each in (free, plain):
        each.loss(x, y).backward()
        torch.optim.SGD(each.parameters(), 0.1).step()
    assert_same(values(free), values(plain))


def test_every_tensor_of_a_true_copy_follows_and_no_other() -> None:
    local, _, _ = small("mlaan", mlm=False)
    followed = {copied for copied, _ in pairs(local)}
    blocks = {name for name, _ in local.named_parameters() if ".auxiliary.blocks." in name}
    assert followed == blocks
    assert all(local.get_parameter(a).shape == local.get_parameter(b).shape for a, b in pairs(local))


def test_what_repair_reshapes_does_not_follow() -> None:
    """Behind a module of 4 channels, the last layer alone is copied: of 16 channels, where it read 16."""
    local, x, y = small("mlaan", p=1, mlm=False)
    first = local.plan.modules[0]
    assert first.note == "copies of layer 6 are fitted: tensors of another shape are not pulled"
    own = [copied for copied, _ in pairs(local) if copied.startswith("module_0.")]
    blocks = {name for name, _ in local.named_parameters() if name.startswith("module_0.auxiliary.blocks.")}
    rest = blocks - set(own)
    assert any("conv1.weight" in name for name in rest)
    assert any("projection" in name for name in rest)
    assert any("conv2" in name for name in own)
    before = values(local)
    torch.optim.SGD(local.parameters(), 0.1).step()  # no gradients: the pull alone
    after = values(local)
    assert all(torch.equal(before[name], after[name]) for name in rest)
    local.loss(x, y).backward()


# Which steps pull -----------------------------------------------------------------------------------------------------


def moved(local: LocalGraphModule, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in values(local).items() if not torch.equal(value, before[name])}


def shifted(local: LocalGraphModule) -> dict[str, torch.Tensor]:
    """Live layers elsewhere, so that any pull shows."""
    for parameter in local.primary.parameters():
        parameter.data += 1.0
    return values(local)


def test_an_optimizer_pulls_what_it_holds() -> None:
    """Each of K optimizers its own module's copies, one of other parameters none."""
    local, _, _ = toy(mlm=False)
    before = shifted(local)
    torch.optim.SGD([nn.Parameter(torch.zeros(2))], 0.1).step()
    torch.optim.SGD(local.primary.parameters(), 0.1).step()
    assert moved(local, before) == set()
    for k, module in enumerate(local.local_modules[:-1]):
        before = values(local)
        torch.optim.Adam(module.parameters(), 0.1).step()
        expected = {copied for copied, _ in pairs(local) if copied.startswith(f"module_{k}.")}
        assert expected
        assert moved(local, before) == expected


def test_a_step_that_a_scaler_skips_pulls_nothing() -> None:
    local, x, y = small("mlaan")
    optimizer = torch.optim.SGD(local.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    before = shifted(local)
    bad = x.clone()
    bad[0, 0, 0, 0] = torch.inf
    for batch, pulled in ((bad, False), (x, True)):
        optimizer.zero_grad()
        scaler.scale(local.loss(batch, y)).backward()
        scaler.step(optimizer)
        scaler.update()
        assert bool(moved(local, before)) is pulled


def test_the_released_twin_follows_though_nothing_trains_it() -> None:
    local, _, _ = small("mlaan", variant="released")
    before = shifted(local)
    torch.optim.SGD([p for p in local.parameters() if p.requires_grad], 0.1).step()
    assert moved(local, before) == {copied for copied, _ in pairs(local)}
    for copied, live in pairs(local):
        assert ".cascaded.blocks.0.pulled." in copied
        expected = 0.995 * before[copied] + 0.005 * before[live]
        torch.testing.assert_close(local.get_parameter(copied), expected)


def test_statistics_are_not_pulled() -> None:
    local, _, _ = small("mlaan")
    for buffer in local.primary.buffers():
        buffer.fill_(7)
    before = {name: b.clone() for name, b in local.named_buffers()}
    torch.optim.SGD(local.parameters(), 0.1).step()
    assert_same(dict(local.named_buffers()), before)


# Copies of the whole, and its life ------------------------------------------------------------------------------------


def test_a_deep_copy_has_pulls_of_its_own() -> None:
    local, _, _ = toy()
    twin = copy.deepcopy(local)
    before, theirs = shifted(local), values(twin)
    torch.optim.SGD(twin.parameters(), 0.1).step()
    assert moved(local, before) == set()
    # Twin's layers are where they were, and so are its copies.
    for copied, live in pairs(twin):
        expected = 0.9 * theirs[copied] + 0.1 * theirs[live]
        torch.testing.assert_close(twin.get_parameter(copied), expected)
    torch.optim.SGD(local.parameters(), 0.1).step()
    assert moved(local, before) == {copied for copied, _ in pairs(local)}


def test_it_follows_where_the_module_is_moved() -> None:
    local, x, y = toy()
    local = local.double()
    before = shifted(local)
    local.loss(x.double(), y).backward()
    torch.optim.SGD(local.parameters(), 0.0).step()
    for copied, live in pairs(local):
        expected = 0.9 * before[copied] + 0.1 * before[live]
        torch.testing.assert_close(local.get_parameter(copied), expected, rtol=1e-12, atol=1e-12)


def test_replaced_parameters_follow() -> None:
    """``to_empty`` of a module that was made without memory puts new parameters in the place of the old."""
    with torch.device("meta"):
        model = Toy()
    local = localize(model, "mlaan", seed=0, example_inputs=torch.empty(2, 6), granularity="block").train()
    local = local.to_empty(device="cpu")
    for name, parameter in local.named_parameters():
        nn.init.constant_(parameter, 1.0 if name.startswith("primary.") else 0.0)
    torch.optim.SGD(local.parameters(), 0.1).step()
    for copied, _ in pairs(local):
        assert torch.allclose(local.get_parameter(copied), torch.tensor(0.005))


def test_nothing_stays_behind() -> None:
    """Networks go when nobody holds them, and any number of them take one hook."""
    local, x, y = toy()
    hooks = len(_global_optimizer_post_hooks)
    others = [toy()[0] for _ in range(3)]
    assert len(_global_optimizer_post_hooks) == hooks
    local.loss(x, y).backward()
    torch.optim.SGD(local.parameters(), 0.1).step()
    gone = [weakref.ref(each) for each in (local, *others)]
    kept = {id(each) for each in leaps._PULLED}
    assert {id(each()) for each in gone} <= kept
    del local, others
    gc.collect()
    assert [each() for each in gone] == [None] * 4


def test_resuming_goes_on_bit_for_bit() -> None:
    local, x, y = small("mlaan", leap="both")
    optimizer = torch.optim.SGD(local.parameters(), 0.1, momentum=0.9)

    def step(network: LocalGraphModule, update: torch.optim.Optimizer) -> None:
        update.zero_grad()
        network.loss(x, y).backward()
        update.step()

    step(local, optimizer)
    state, progress = copy.deepcopy(local.state_dict()), copy.deepcopy(optimizer.state_dict())
    step(local, optimizer)
    again, _, _ = small("mlaan", seed=5, leap="both")
    again.load_state_dict(state)
    resumed = torch.optim.SGD(again.parameters(), 0.1, momentum=0.9)
    resumed.load_state_dict(progress)
    step(again, resumed)
    assert_same(dict(again.state_dict()), dict(local.state_dict()))
