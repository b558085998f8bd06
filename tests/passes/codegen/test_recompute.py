"""Pieces that run a second time in the backward pass: the same gradients, and nothing kept that can be spared."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from passes.codegen.recompute import buffers_in, recomputed
from passes.codegen.relu import frugal_relu


class Counted(nn.Module):
    """Hidden layers, and how often each ran."""

    def __init__(self, layers: int = 2, inplace: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace)) for _ in range(layers)
        )
        self.runs: list[str] = []
        for name, module in self.named_modules():
            module.register_forward_hook(lambda *_, name=name: self.runs.append(name))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = F.dropout(layer(x), 0.3, self.training)
        return x


def grad_of(tensor: torch.Tensor) -> torch.Tensor:
    assert tensor.grad is not None
    return tensor.grad


def gradients(run: Callable[[torch.Tensor], torch.Tensor], net: nn.Module, x: torch.Tensor) -> list[Any]:
    torch.manual_seed(5)
    leaf = x.clone().requires_grad_()
    out = run(leaf)
    out.square().sum().backward()
    return [out.detach(), leaf.grad, *[p.grad.clone() for p in net.parameters() if p.grad is not None]]


@given(layers=st.integers(1, 3), inplace=st.booleans(), amp=st.booleans(), nested=st.booleans())
@settings(max_examples=20, deadline=None)
def test_gradients_are_those_of_a_plain_run(layers: int, inplace: bool, amp: bool, nested: bool) -> None:
    net, x = Counted(layers, inplace), torch.randn(2, 4, 5, 5)
    statistics = {name: buffer.clone() for name, buffer in net.named_buffers()}

    def lean(leaf: torch.Tensor) -> Any:
        run = (lambda a: recomputed(net, [a], buffers_in(net))) if nested else net
        return recomputed(run, [leaf], buffers_in(net))

    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        plain = gradients(net, net, x)
        after = {name: buffer.clone() for name, buffer in net.named_buffers()}
        net.load_state_dict(statistics, strict=False)
        net.zero_grad()
        found = gradients(lean, net, x)
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
    assert all(torch.equal(after[name], buffer) for name, buffer in net.named_buffers())


def test_the_second_run_ends_with_the_last_missing_tensor() -> None:
    net = Counted(2)
    net.eval()
    result = recomputed(net, [torch.randn(1, 4, 5, 5)])
    first = list(net.runs)
    result.sum().backward()
    again = net.runs[len(first) :]
    # What the last norm reads is missing, the statistics that it gives are not; the result is there.
    assert first[-4:] == ["layers.1.1", "layers.1.2", "layers.1", ""]
    assert again == ["layers.0.0", "layers.0.1", "layers.0.2", "layers.0", "layers.1.0"]


def test_nothing_runs_again_where_all_is_there() -> None:
    net = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    runs: list[int] = []
    net.register_forward_hook(lambda *_: runs.append(1))
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    recomputed(net, [x]).sum().backward()
    assert runs == [1]


def test_inner_tensors_are_not_kept() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh(), nn.Conv2d(4, 4, 1))
    inner: list[weakref.ref[Any]] = []
    net[1].register_forward_hook(lambda m, a, out: inner.append(weakref.ref(out.untyped_storage())))
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    result = recomputed(net, [x])
    gc.collect()
    assert inner[0]() is None
    result.sum().backward()
    gc.collect()
    assert inner[1]() is None


def test_backward_twice_needs_retain_graph() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh(), nn.Conv2d(4, 4, 1))
    x = torch.randn(2, 4, 3, 3)
    loss = recomputed(net, [x]).sum()
    loss.backward(retain_graph=True)
    once = [grad_of(p).clone() for p in net.parameters()]
    loss.backward(retain_graph=True)
    assert all(torch.equal(grad_of(p), 2 * g) for p, g in zip(net.parameters(), once, strict=True))
    loss.backward()
    with pytest.raises(RuntimeError, match=r"second time|freed"):
        loss.backward()


def test_a_result_changed_in_place_is_noticed() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh())
    result = recomputed(net, [torch.randn(2, 4, 3, 3)])
    loss = result.sum()
    with torch.no_grad():
        result.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place since"):
        loss.backward()


def test_a_piece_that_gives_something_else_is_noticed() -> None:
    calls: list[int] = []

    def fickle(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return (x * x if len(calls) == 1 else x[:1] * x[:1]).exp().sin()

    result = recomputed(fickle, [torch.randn(2, 4, requires_grad=True)])
    with pytest.raises(RuntimeError, match="second run gave"):
        result.sum().backward()


def test_a_function_may_ask_for_a_tensor_twice() -> None:
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            (a,) = ctx.saved_tensors
            (b,) = ctx.saved_tensors
            result: torch.Tensor = gradient * (a + b)
            return result

    x = torch.randn(2, 4, requires_grad=True)
    recomputed(lambda x: Twice.apply(x.exp()).sin(), [x]).sum().backward()
    found, x.grad = grad_of(x), None
    Twice.apply(x.exp()).sin().sum().backward()
    assert torch.equal(found, grad_of(x))


def test_a_stem_spares_one_map_for_one_more_convolution() -> None:
    """What the norm reads is made anew only when the backward of max-pool and ReLU is done."""

    def stem(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = F.max_pool2d(frugal_relu(relu, norm(conv(x))), 2)
        return result

    conv, norm, relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
    runs: list[int] = []
    conv.register_forward_hook(lambda *_: runs.append(1))
    x = torch.randn(2, 3, 8, 8)
    conv(x.requires_grad_()).sum()
    found = []
    for run in (stem, lambda a: recomputed(stem, [a], buffers_in(norm))):
        runs.clear()
        x.grad = None
        conv.zero_grad()
        norm.zero_grad()
        run(x).square().sum().backward()
        found.append([x.grad, *(p.grad for p in (*conv.parameters(), *norm.parameters()))])
        assert len(runs) == (1 if run is stem else 3)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True) if a is not None and b is not None)
    assert all(gradient is not None for gradient in found[0])


def test_frugal_relu_is_relu() -> None:
    for inplace in (False, True):
        relu = nn.ReLU(inplace)
        x = torch.randn(3, 4, 6, 6, requires_grad=True)
        (expected,) = torch.autograd.grad(F.max_pool2d(F.relu(x * 2), 2).sin().sum(), x)
        (found,) = torch.autograd.grad(F.max_pool2d(frugal_relu(relu, x * 2), 2).sin().sum(), x)
        assert torch.equal(expected, found)
        # A gradient that one value stands for many in is not written to.
        (found,) = torch.autograd.grad(frugal_relu(relu, x * 2).sum(), x)
        assert torch.equal(found, 2 * (x > 0))


def test_hooks_of_a_relu_fire() -> None:
    relu = nn.ReLU()
    seen: list[torch.Tensor] = []
    relu.register_forward_hook(lambda m, a, out: seen.append(out))
    result = frugal_relu(relu, torch.randn(2, 3, requires_grad=True) * 1)
    assert seen[0] is result
