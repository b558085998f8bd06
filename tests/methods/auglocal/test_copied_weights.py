"""``aux_init="copy"``: copies start from the very weights of the layers they copy, where shapes are kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from localize import localize
from localize.models import cifar_resnet
from tests.tools.auglocal import assert_trains


def pretrained() -> nn.Module:
    """Weights and statistics that no initializer would give."""
    model = cifar_resnet(14, width=4)
    generator = torch.Generator().manual_seed(1)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.1, 0.9, generator=generator)
    return model


def test_copies_of_unchanged_shape_compute_what_the_primary_does() -> None:
    """Sequential copies behind layer1.0: layer1.1, then layer2.0 at half the resolution, all with their own shapes."""
    model = pretrained()
    local = localize(model, d=3, max_cut=1, selection="sequential", aux_init="copy", tau=0.0, seed=0)
    assert [layer.name for layer in local.plan.layers[1:4]] == ["layer1.0", "layer1.1", "layer2.0"]
    auxiliary = local.local_modules[1].auxiliary
    assert isinstance(auxiliary, nn.Sequential)
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        found = auxiliary[:2].eval()(x)
        expected = nn.Sequential(model.get_submodule("layer1.1"), model.get_submodule("layer2.0")).eval()(x)
    assert torch.equal(found, expected)
    mine = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    assert not mine & {t.data_ptr() for t in (*auxiliary.parameters(), *auxiliary.buffers())}


class Block(nn.Module):
    """Layer scale read by the graph itself, a norm, a linear layer, and a shortcut: nothing changes shape."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(8))
        self.norm = nn.BatchNorm2d(8, momentum=None)
        self.layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.gamma[:, None, None] * self.layer(self.norm(x))
        return result


@pytest.mark.parametrize("training", [True, False])
def test_copies_in_an_isotropic_network_are_its_next_layers(training: bool) -> None:
    """Uniform selection too, wherever shapes agree: the copy of layer i computes what layer i computes."""
    stem, blocks = nn.Conv2d(3, 8, 3, padding=1), [Block() for _ in range(4)]
    model = nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    for block in blocks:
        block.norm(torch.randn(4, 8, 8, 8) * 3 + 1)
    example = torch.empty(2, 3, 8, 8)
    local = localize(model, d=3, tau=0.0, last="single", aux_init="copy", example_inputs=example, seed=0)
    layers = len(local.plan.layers)
    assert layers == 5
    x = torch.randn(4, 8, 8, 8)
    for module in local.local_modules[:-1]:
        planned = module.plan.auxiliary
        assert planned is not None
        for position, source in enumerate(planned.selected):
            copied = module.get_submodule(f"auxiliary.block_{position}").train(training)
            own = copy.deepcopy(blocks[source - 1]).train(training)
            with torch.no_grad():
                assert torch.equal(copied(x), own(x))


def tensors(module: nn.Module | None) -> dict[str, torch.Tensor]:
    assert module is not None
    return {key: value for key, value in module.state_dict().items() if value.is_floating_point()}


def test_what_changes_shape_is_drawn_in_the_scale_of_the_copied() -> None:
    """Uniform, d=2: layer3.1 (16 channels) behind the stem (4): its first convolution and its projection are new."""
    model = pretrained()
    last = model.get_submodule("layer3.1")
    block, fresh = (
        tensors(
            localize(model, d=2, max_cut=1, aux_init=init, seed=0).local_modules[0].get_submodule("auxiliary.block_0")
        )
        for init in ("copy", "fresh")
    )
    own = tensors(last)
    same = {key for key, value in block.items() if any(torch.equal(value, other) for other in own.values())}
    changed = {key for key in block.keys() - same if "projection" not in key}
    assert {tuple(block[key].shape) for key in changed} == {(16, 4, 3, 3)}
    (key,) = changed
    assert float(block[key].std()) == pytest.approx(float(own["conv1.weight"].std()), rel=0.1)
    assert not any(torch.equal(fresh[key], value) for key in fresh for value in own.values())
    assert sum(value.numel() for key, value in block.items() if key in same) == sum(v.numel() for v in own.values()) - (
        own["conv1.weight"].numel()
    )


def test_copied_weights_depend_on_the_seed_alone() -> None:
    model = pretrained()
    one, two, other = (tensors(localize(model, d=3, max_cut=1, aux_init="copy", seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)
    drawn = [key for key in one if not torch.equal(one[key], other[key])]
    assert all("auxiliary" in key for key in drawn)
    assert any("head" in key for key in drawn)


def test_copied_weights_train_and_survive_a_deep_copy() -> None:
    local = localize(pretrained(), d=3, max_cut=1, aux_init="copy", seed=0)
    twin = copy.deepcopy(local)
    assert all(torch.equal(a, b) for a, b in zip(local.state_dict().values(), twin.state_dict().values(), strict=True))
    assert_trains(local)
