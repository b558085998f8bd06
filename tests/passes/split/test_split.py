"""Splitting width: figures of the released ResNet-32, a slow reading of random networks, and groups that never meet."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from localize.models import cifar_resnet
from localize.plan.grouping import group_evenly
from passes.common.initializer import Initializer
from passes.errors import SplitError
from passes.ir import Network
from passes.layers.grouped import Gathered, GroupedLayerNorm, GroupedLinear
from passes.pipeline import analyse
from passes.split.split import split_width
from passes.split.trace_owners import trace_groups
from tests.models.graphs import SIZE, Program, bounded, programs

SHAPE = (2, 3, SIZE, SIZE)


def _split(model: nn.Module, count: int, groups: int, shape: tuple[int, ...] = SHAPE, **options: int) -> nn.Module:
    network = analyse(model, shape, **options)  # type: ignore[arg-type]
    modules = group_evenly(len(network.layers), count)
    draw = Initializer(torch.Generator().manual_seed(0))
    return split_width(network, modules, [groups] * count, draw)


PARITY = {
    (2, 2): (239184, 35962880, {(2, 2)}),
    (4, 2): (258768, 38322176, {(1, 3), (2, 2), (3, 1)}),
    (8, 4): (195152, 29212672, {(1, 1), (1, 3), (2, 0), (2, 2), (2, 4), (3, 1), (3, 3)}),
}
"""By K and G: parameters and multiply-accumulates of the released code's network, whose last linear layer is not used
and not counted; and the blocks, as (stage, index), whose first convolution stays dense."""


@pytest.mark.parametrize(("count", "groups"), PARITY)
def test_resnet32_is_split_as_in_the_released_code(count: int, groups: int) -> None:
    params, macs, dense = PARITY[count, groups]
    with torch.device("meta"):
        model = cifar_resnet(32)
    made = _split(model, count, groups, (2, 3, 32, 32))
    again = analyse(made, (2, 3, 32, 32))
    assert sum(p.numel() for name, p in made.named_parameters() if not name.startswith("fc.")) == params
    assert sum(layer.macs for layer in again.layers) == macs
    for stage in (1, 2, 3):
        for index in range(5):
            block = made.get_submodule(f"layer{stage}.{index}")
            found = {name: m.groups for name, m in block.named_modules() if isinstance(m, nn.Conv2d)}
            first = 1 if (stage, index) in dense else groups
            assert (found.pop("conv1"), found.pop("conv2")) == (first, groups)
            assert set(found.values()) <= {first}, "the shortcut reads what the first convolution reads"


def _reading(model: Program, groups: int) -> int | None:
    """Parameters of a program whose layers are one module, read instruction by instruction; None where groups meet."""
    owners: list[list[int]] = [[-1] * 3]
    total = sum(p.numel() for p in model.fc.parameters())
    for step in model.instructions:
        read = [owners[i] for i in step.reads]
        layer = model.layers[step.layer] if step.layer >= 0 else None
        if step.kind == "conv":
            assert isinstance(layer, nn.Conv2d)
            outputs, kernel = layer.out_channels, layer.kernel_size[0] ** 2
            if layer.groups > 1:
                total += layer.weight.numel()
                value = read[0]
            else:
                own = [read[0].count(group) for group in range(groups)]
                if outputs % groups or len(set(own)) > 1:
                    return None
                total += kernel * outputs * (own[0] + read[0].count(-1))
                value = [i * groups // outputs for i in range(outputs)]
        elif step.kind in ("add", "gate"):
            pairs = [{a, b} - {-1} for a, b in zip(*read, strict=True)]
            if any(len(pair) > 1 for pair in pairs):
                return None
            value = [max(pair, default=-1) for pair in pairs]
        elif step.kind == "cat":
            value = [owner for part in read for owner in part]
        elif step.kind == "shuffle":
            half = len(read[0]) // 2
            value = [read[0][half * (i % 2) + i // 2] for i in range(2 * half)]
        else:
            value = read[0]
            total += sum(p.numel() for p in layer.parameters()) if layer is not None else 0
        owners.append(value)
    return total


@bounded(30)
@given(model=programs(), groups=st.sampled_from([2, 2, 3]))
def test_parameters_are_those_of_a_reading_by_hand(model: Program, groups: int) -> None:
    expected = _reading(model, groups)
    try:
        made = _split(model, 1, groups)
    except SplitError:
        assert expected is None
        return
    assert sum(p.numel() for p in made.parameters()) == expected
    x = torch.randn(SHAPE)
    assert made(x).shape == model(x).shape


def values_at(values: dict[str, Any]) -> Callable[[torch.fx.Node], Any]:
    return lambda node: values[node.name]


def _outputs(network: Network, x: torch.Tensor, ends: list[str]) -> list[torch.Tensor]:
    """Return the values of some nodes, each computed from detached values of the earlier ones."""
    captured = network.captured
    values: dict[str, Any] = {captured.input: x}
    found = []
    for node in captured.nodes[1:-1]:
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values_at(values))
        module = captured.module(node)
        if module is not None:
            values[node.name] = module(*args, **kwargs)
        elif node.op == "call_method":
            values[node.name] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            values[node.name] = node.target(*args, **kwargs)
        if node.name in ends:
            value = values[node.name]
            assert isinstance(value, torch.Tensor)
            found.append(value)
            values = {name: v.detach().clone() if isinstance(v, torch.Tensor) else v for name, v in values.items()}
    return found


@bounded(20)
@given(model=programs(), count=st.integers(1, 3), seed=st.integers(0, 99))
def test_groups_never_meet(model: Program, count: int, seed: int) -> None:
    """No weight moves the channels of two groups, but those that the pass names; and moving one leaves the other."""
    network = analyse(model, SHAPE)
    assume(len(network.layers) >= count)
    modules = group_evenly(len(network.layers), count)
    draw = Initializer(torch.Generator().manual_seed(seed))
    try:
        made = split_width(network, modules, [2] * count, draw)
    except SplitError:
        assume(False)
    again = analyse(made, SHAPE, like=network)
    found = trace_groups(again, modules, [2] * count, split=False)
    ends = [again.partition.cuts[layers[-1]] for layers in modules]
    x = torch.randn(SHAPE)
    for k in range(count):
        value = _outputs(again, x, ends)[k]
        masks = []
        for group in (0, 1):
            own = torch.tensor(found.owners[k]) == group
            assert own.any()
            weighted = (value[:, own] * torch.randn_like(value[:, own])).sum()
            grads = torch.autograd.grad(weighted, list(made.parameters()), retain_graph=True, allow_unused=True)
            masks.append({
                name: torch.zeros_like(p, dtype=torch.bool) if g is None else g != 0
                for (name, p), g in zip(made.named_parameters(), grads, strict=True)
            })  # fmt: skip
        both = {name for name in masks[0] if bool((masks[0][name] & masks[1][name]).any())}
        assert both <= set(found.shared[k])
        moved = copy.deepcopy(made)
        with torch.no_grad():
            for name, p in moved.named_parameters():
                p[masks[1][name] & ~masks[0][name]] += 1
        other = _outputs(analyse(moved, SHAPE, like=network), x, ends)[k]
        first = torch.tensor(found.owners[k]) == 0
        assert torch.equal(other[:, first], value[:, first])


class Mixer(nn.Module):
    """Tokens: patches, then linear layers over channels with layer norms, then a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(8, 16) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(16, 8) for _ in range(2))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            x = x + down(up(norm(x)).relu())
        result: torch.Tensor = self.head(x.mean(1))
        return result


def test_linear_layers_and_layer_norms_are_split() -> None:
    made = _split(Mixer(), 1, 2)
    assert isinstance(made, Mixer)
    layers = [*made.up, *made.down]
    assert all(isinstance(layer, GroupedLinear) and layer.groups == 2 for layer in layers)
    assert all(isinstance(norm, GroupedLayerNorm) for norm in made.norms)
    assert sum(p.numel() for p in made.parameters()) == sum(p.numel() for p in Mixer().parameters()) - 4 * 64
    assert made(torch.randn(SHAPE)).shape == (2, 5)


def _net(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), *middle, nn.Conv2d(8, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    )  # fmt: skip


class Attention(nn.Module):
    """Attention over pixels, all channels in one head."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(8, 24, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).flatten(2).transpose(1, 2).chunk(3, 2)
        result = nn.functional.scaled_dot_product_attention(q, k, v)
        return result.transpose(1, 2).reshape(x.shape)


class Weighted(nn.Module):
    """Multiplies by a matrix of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x.movedim(1, -1), self.weight).movedim(-1, 1)


REFUSED: dict[str, tuple[Callable[[], nn.Module], int, str]] = {
    "attention": (lambda: _net(Attention()), 2, r"attention of Attention .*2 groups.*\(in 1, at test_split.py"),
    "channels": (lambda: _net(nn.Conv2d(8, 9, 1), nn.Conv2d(9, 8, 1)), 2, r"Conv2d .*in 1.*9 output channels"),
    "group norm": (lambda: _net(nn.GroupNorm(4, 8)), 8, r"GroupNorm .*8 groups.*\(in 1\b"),
    "weights": (lambda: _net(Weighted()), 2, r"linear of Weighted .*in 1, .*multiplies by weights"),
    "softmax": (lambda: _net(nn.Softmax(1)), 2, r"Softmax .*in 1.*depends on channels of several groups"),
    "reparametrized": (
        lambda: _net(nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))), 2, r"in 1.*reparametriz",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_split_is_named(name: str) -> None:
    make, groups, message = REFUSED[name]
    with pytest.raises(SplitError, match=message) as caught:
        _split(make(), 1, groups)
    assert "groups" in str(caught.value.remedy)


def test_tied_layers_are_refused() -> None:
    model = _net(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1))
    model[1].weight = model[2].weight  # type: ignore[index]
    with pytest.raises(SplitError, match=r"in 1\): another layer has the same weights"):
        _split(model, 1, 2)


def test_norms_and_grouped_convolutions() -> None:
    model = _net(
        nn.GroupNorm(1, 8), nn.GroupNorm(4, 8), nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 8, 3, groups=8),
        nn.InstanceNorm2d(8), nn.ConvTranspose2d(8, 8, 3),
    )  # fmt: skip
    made = _split(model, 1, 2)
    assert [m.num_groups for m in made.modules() if isinstance(m, nn.GroupNorm)] == [2, 4]
    assert [m.groups for m in made.modules() if isinstance(m, nn.Conv2d)] == [1, 4, 8, 2]
    assert [tuple(m.weight.shape) for m in made.modules() if isinstance(m, nn.ConvTranspose2d)] == [(8, 4, 3, 3)]
    assert made(torch.randn(SHAPE)).shape == (2, 5)


def test_convolutions_behind_a_shuffle_gather_channels() -> None:
    made = _split(_net(nn.ChannelShuffle(2), nn.ReLU()), 1, 2)
    layer = made[3]  # type: ignore[index]
    assert isinstance(layer, Gathered)
    assert layer.channels == (0, 2, 4, 6, 1, 3, 5, 7)


def test_the_model_is_left_alone_and_seeds_decide() -> None:
    model = cifar_resnet(8, width=8)
    before = copy.deepcopy(model.state_dict())
    first, second = (_split(model, 2, 2) for _ in range(2))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert type(first) is type(model)
    assert list(first.state_dict()) == list(before)
    changed = 0
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
        if value.shape == before[name].shape:
            assert torch.equal(value, before[name])
        else:
            changed += 1
            # He's rule by fan out, which a group does not change.
            assert float(value.std()) == pytest.approx(float(before[name].std()), rel=0.2)
    assert changed > 3
    first(torch.randn(SHAPE)).sum().backward()
    assert all(p.grad is not None for p in first.parameters())


def test_a_split_network_exports() -> None:
    made = _split(cifar_resnet(8, width=8), 2, 2).eval()
    x = torch.randn(SHAPE)
    exported = torch.export.export(made, (x,)).module()
    assert torch.equal(exported(x), made(x))
