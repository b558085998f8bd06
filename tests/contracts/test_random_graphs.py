"""Random convolutional networks: chains, residual additions, concatenations, branches, gates, downsampling."""

from __future__ import annotations

import networkx as nx
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from torch import nn

from localize import LocalGraphModule, Plan, localize
from localize.methods.networks.merge import Merged
from passes.ir import Network
from passes.pipeline import analyse
from tests.models.graphs import SIZE, Instruction, Program, bounded, programs
from tests.models.zoo import assert_same, gradients
from tests.tools.isolated import assert_isolated

EXAMPLE = torch.empty(2, 3, SIZE, SIZE)


def flow_of(network: Network) -> nx.DiGraph[str]:
    """Tensors, and which is computed from which."""
    flow: nx.DiGraph[str] = nx.DiGraph()
    for node in network.captured.nodes:
        if node.op != "output":
            flow.add_edges_from((parent.name, node.name) for parent in node.all_input_nodes)
    flow.remove_nodes_from(network.shapes.numbers)
    return flow


def mixes(network: Network, name: str) -> bool:
    node = next(node for node in network.captured.nodes if node.name == name)
    module = network.captured.module(node)
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def usable_cuts(network: Network, names: tuple[str, ...]) -> list[str]:
    """Values inside a layer that separate the input from the output and two of the layer's mixing operations."""
    flow = flow_of(network)
    source, result = network.captured.input, network.captured.result.name
    mixing = {name for name in names if mixes(network, name)}
    found = []
    for name in set(names) & set(flow):
        rest = flow.copy()
        rest.remove_node(name)
        if name == result or nx.has_path(rest, source, result):
            continue
        before = mixing & (nx.ancestors(flow, name) | {name})
        if before and mixing - before:
            found.append(name)
    return found


@bounded(40)
@given(programs(largest=8))
def test_partition(program: Program) -> None:
    network = analyse(program, EXAMPLE.shape, max_cut=1)
    part, names = network.partition, [node.name for node in network.captured.nodes]
    event(f"{len(part.layers)} layers")
    groups = [*part.nodes, part.classifier]
    assert part.shared == ()
    # The graph once: every node but the input and the output in one layer or the classifier.
    assert sorted(name for group in groups for name in group) == sorted(names[1:-1])
    order = [names.index(cut) for cut in part.cuts]
    assert order == sorted(set(order))
    assert [cut in group for cut, group in zip(part.cuts, part.nodes, strict=True)] == [True] * len(part.layers)
    home = {name: index for index, group in enumerate(groups) for name in group}
    for before, after in flow_of(network).edges:
        here, there = home.get(before, -1), home[after]
        assert here == there or (there == here + 1 and before == ([network.captured.input, *part.cuts][here + 1]))
    for group in part.nodes:
        assert any(mixes(network, name) for name in group)
        assert usable_cuts(network, group) == []
    assert sum(layer.params for layer in part.layers) + part.classifier_params == sum(
        p.numel() for p in program.parameters()
    )


def test_the_brute_force_finds_cuts() -> None:
    """Joined layers are found out: the search above can fail."""
    program = Program(
        [conv(3, 4), conv(4, 4)], [step("conv", 0, 0), step("relu", 1), step("conv", 2, 1), step("relu", 3)], 4
    )
    network = analyse(program, EXAMPLE.shape, max_cut=1)
    assert len(network.partition.nodes) == 2
    joined = tuple(name for group in network.partition.nodes for name in group)
    assert len(usable_cuts(network, joined)) == 2


def alive_after(network: Network, names: list[str], position: int) -> set[str]:
    """Tensors computed at ``names[position]`` or before, and read after it."""
    before, after = set(names[: position + 1]), set(names[position + 1 :])
    return {a for a, b in flow_of(network).edges if a in before and b in after}


@bounded(25)
@given(programs(largest=8), st.integers(2, 5))
def test_wide_cuts(program: Program, width: int) -> None:
    network = analyse(program, EXAMPLE.shape, max_cut=width)
    part, names = network.partition, [node.name for node in network.captured.nodes][:-1]
    groups = [*part.nodes, part.classifier]
    assert sorted(name for group in groups for name in group) == sorted(names[1:])
    home = {name: index for index, group in enumerate(groups) for name in group} | {network.captured.input: 0}
    for layer, live in zip(part.layers, part.live, strict=True):
        assert len(live) == layer.width <= width
        assert home[live[0]] == layer.index
    for before, after in flow_of(network).edges:
        assert all(before in live for live in part.live[home[before] : home[after]])
    event(f"width {max(layer.width for layer in part.layers)} of {width}")
    for group in part.nodes:
        mixing = [i for i, name in enumerate(names) if name in group and mixes(network, name)]
        assert mixing
        # Between two mixing operations of one layer, too many tensors are alive everywhere.
        inside = range(mixing[0], mixing[-1])
        assert [i for i in inside if 0 < len(alive_after(network, names, i)) <= width] == []


def step(kind: str, read: int, layer: int = -1) -> Instruction:
    return Instruction(kind, (read,), layer)


def test_an_exchange_of_channels_is_not_cut_in_two() -> None:
    """What follows works in place, so its input is no good border; the five-dimensional value inside is none at all."""
    layers = [conv(3, 4), nn.ReLU(inplace=True), conv(4, 4), conv(4, 4)]
    steps = [step("conv", 0, 0), step("shuffle", 1), step("relu_", 2, 1), step("conv", 3, 2)]
    program = Program(layers, [*steps, Instruction("add", (2, 4), -1), step("conv", 5, 3)], 4)
    plan = localize(program, d=2, last="single", seed=0, example_inputs=EXAMPLE).plan
    assert [layer.output.layout for layer in plan.layers] == ["NCHW"] * 3


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


def assert_blocks_give_what_they_say(local: LocalGraphModule) -> None:
    """Run every auxiliary network on the output of its module, and check each block."""
    plan = local.plan
    for planned, module in zip(plan.modules, local.local_modules, strict=True):
        if planned.auxiliary is None:
            assert module.auxiliary is None
            continue
        network = module.auxiliary
        assert isinstance(network, Merged) == bool(planned.auxiliary.merged)
        if isinstance(network, Merged):
            assert len(network.adapters) == len(planned.auxiliary.merged) == module.reads - 1
            network = network.network
        assert isinstance(network, nn.Sequential)
        value = torch.randn(2, *plan.layers[planned.layers[-1]].output.shape[1:])
        for block, part in zip(planned.auxiliary.blocks, network, strict=False):
            assert value.shape[1] == block.in_channels
            size = value.shape[-1]
            value = part(value)
            assert value.shape[1] == block.out_channels
            assert size / value.shape[-1] == block.stride
        assert network[-1](value).shape == plan.output.shape
        assert planned.auxiliary.params == sum(p.numel() for p in module.auxiliary.parameters())  # type: ignore[misc]
        assert [block.source for block in planned.auxiliary.blocks] == [*planned.auxiliary.selected]


@bounded(25)
@given(programs(), st.sampled_from([None, 1, 2, 4]), st.sampled_from([None, 2]))
def test_training(program: Program, max_cut: int | None, modules: int | None) -> None:
    if modules:
        layers = len(analyse(program, EXAMPLE.shape, max_cut=max_cut).layers)
        modules = min(modules, layers)
    local = localize(program, d=3, last="single", seed=0, max_cut=max_cut, modules=modules, example_inputs=EXAMPLE)
    event(f"{len(local.plan.modules)} modules")
    x, y = torch.randn(4, 3, SIZE, SIZE), torch.arange(4)
    with torch.no_grad():
        assert torch.equal(local.eval()(x), program.eval()(x))
    local.train()
    expected = assert_isolated(local, x, y)
    local.zero_grad()
    local.loss(x, y).backward()
    assert_same(gradients(local), expected)
    assert Plan.from_json(local.plan.to_json()) == local.plan
    assert_blocks_give_what_they_say(local)
