"""Adaptation by repair: what is changed in a layer so that it stands behind another input."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from localize import localize
from passes.adapt.adapter import Adapter
from passes.adapt.copy_recipe import CopyRecipe
from passes.adapt.rebuild import rebuild
from passes.common.initializer import Initializer
from passes.errors import AdaptError
from passes.ir import TensorSpec
from passes.pipeline import analyse
from tests.tools.built import assert_built


def conv(inputs: int, outputs: int, stride: int = 1, groups: int = 1, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)


class Residual(nn.Module):
    """x + body(x), or projection(x) + body(x)."""

    def __init__(self, body: nn.Module, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.projection = projection

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.body(x) + (x if self.projection is None else self.projection(x))
        return result


class Gated(nn.Module):
    """Depthwise convolution, squeeze-excite gate, pointwise convolution, shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = conv(channels, channels, groups=channels)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), conv(channels, 4, size=1), nn.ReLU(), conv(4, channels, size=1)
        )
        self.pointwise = conv(channels, channels, size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.depthwise(x)
        result: torch.Tensor = x + self.pointwise(y * self.gate(y).sigmoid())
        return result


class LastChannels(nn.Module):
    """ConvNeXt's order: depthwise, channels last, layer norm, linear, layer scale, shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = conv(channels, channels, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.linear = nn.Linear(channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        result: torch.Tensor = x + (y * self.gamma).permute(0, 3, 1, 2)
        return result


class ScaleAlone(nn.Module):
    """A convolution that keeps the width of its input, then a scale for each channel of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = conv(channels, channels, groups=channels)
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))
        self.pointwise = conv(channels, channels, size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.pointwise(self.depthwise(x) * self.gamma) + 0
        return result


class Bilinear(nn.Module):
    """A leaf of which nothing is known: its weight is used in a way of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] != len(self.weight):  # keeps torch.fx out
            raise ValueError("wrong width")
        return torch.einsum("nchw,cd->ndhw", x, self.weight)


def net(block: nn.Module, before: int, after: int) -> nn.Module:
    """Stem, the block as layer 1, a last convolution, classifier."""
    stem = nn.Sequential(conv(3, before), nn.ReLU())
    return nn.Sequential(
        stem,
        block,
        nn.Sequential(conv(after, after), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(after, 5),
    )


def place(
    block: nn.Module, before: int, after: int, channels: int, stride: int = 1, size: int = 8, layer: int = 1
) -> tuple[CopyRecipe, fx.GraphModule]:
    """Fits the block behind an input of ``channels``, and builds it; its output is checked against the recipe."""
    network = analyse(net(block, before, after), (2, 3, 16, 16), max_cut=1)
    adapter = Adapter(network)
    recipe = adapter.adapt(layer, TensorSpec((2, channels, size, size), layout="NCHW"), stride, "stride")
    module = rebuild(adapter, recipe, Initializer(torch.Generator().manual_seed(0)))
    assert_built(recipe, module)
    return recipe, module


def test_convolution_and_norm_take_the_channels() -> None:
    recipe, _ = place(nn.Sequential(conv(8, 12), nn.BatchNorm2d(12), nn.ReLU()), 8, 12, channels=5)
    assert recipe.repaired
    assert not recipe.projection
    assert recipe.params == 5 * 12 * 9 + 24
    assert recipe.macs == 5 * 12 * 9 * 64
    assert recipe.output.channels == 12


def test_norm_before_the_convolution_takes_the_channels() -> None:
    block = Residual(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8), nn.GroupNorm(4, 8), conv(8, 8)))
    recipe, module = place(block, 8, 8, channels=6)
    assert [m.num_features for m in module.modules() if isinstance(m, nn.BatchNorm2d)] == [
        6,
        8,
    ]  # its own, projection's
    assert recipe.projection


@pytest.mark.parametrize(("channels", "groups"), [(6, 2), (5, 1), (12, 4)])
def test_grouped_convolution_keeps_what_groups_divide(channels: int, groups: int) -> None:
    _, module = place(nn.Sequential(conv(8, 16, groups=4), nn.ReLU()), 8, 16, channels=channels)
    (found,) = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert (found.in_channels, found.out_channels, found.groups) == (channels, 16, groups)


def test_depthwise_convolution_gate_and_pointwise_follow_the_input() -> None:
    recipe, module = place(Gated(8), 8, 8, channels=6)
    shapes = [(m.in_channels, m.out_channels, m.groups) for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert shapes == [(6, 6, 6), (6, 4, 1), (4, 6, 1), (6, 8, 1), (6, 8, 1)]  # the last is the shortcut's
    assert recipe.repaired


def test_layer_norm_linear_and_layer_scale() -> None:
    recipe, module = place(LastChannels(8), 8, 8, channels=6)
    (norm,) = [m for m in module.modules() if isinstance(m, nn.LayerNorm)]
    (linear,) = [m for m in module.modules() if isinstance(m, nn.Linear)]
    assert norm.normalized_shape == (6,)
    assert (linear.in_features, linear.out_features) == (6, 8)
    assert recipe.projection
    scales = [p for name, p in module.named_parameters() if "gamma" in name]
    assert torch.equal(scales[0], torch.full((8,), 1e-6))


def test_a_parameter_with_an_entry_a_channel_takes_the_channels() -> None:
    _, module = place(ScaleAlone(8), 8, 8, channels=6)
    (scale,) = [p for name, p in module.named_parameters() if "gamma" in name]
    assert tuple(scale.shape) == (6, 1, 1)


@pytest.mark.parametrize(("channels", "stride", "projected"), [(8, 1, False), (6, 1, True), (8, 2, True), (6, 2, True)])
def test_identity_shortcut_is_projected_where_width_or_resolution_changes(
    channels: int, stride: int, projected: bool
) -> None:
    recipe, _ = place(Residual(nn.Sequential(conv(8, 8), nn.ReLU(), conv(8, 8))), 8, 8, channels, stride)
    assert recipe.projection is projected
    assert recipe.stride == stride
    assert recipe.output.shape == (2, 8, 8 // stride, 8 // stride)
    assert recipe.params == channels * 72 + 8 * 72 + projected * (channels * 8 + 16)


@pytest.mark.parametrize(
    ("channels", "stride", "projected"), [(8, 2, True), (16, 1, False), (8, 1, True), (16, 2, True)]
)
def test_projected_shortcut_keeps_loses_or_moves_its_stride(channels: int, stride: int, projected: bool) -> None:
    block = Residual(
        nn.Sequential(conv(8, 16, 2), nn.ReLU(), conv(16, 16)),
        nn.Sequential(conv(8, 16, 2, size=1), nn.BatchNorm2d(16)),
    )
    recipe, module = place(block, 8, 16, channels, stride)
    assert (recipe.projection, recipe.stride) == (projected, stride)
    strides = [m.stride[0] for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert strides == ([stride, 1, stride] if projected else [stride, 1])


def test_pooling_of_its_own_is_taken_out_and_put_in_front() -> None:
    block = nn.Sequential(conv(8, 8), nn.ReLU(), nn.MaxPool2d(2))
    network = analyse(net(block, 8, 8), (2, 3, 16, 16), max_cut=1)
    adapter = Adapter(network)
    spec = TensorSpec((2, 8, 9, 9), layout="NCHW")
    flat = adapter.adapt(1, spec, 1, "max_pool")
    assert (flat.output.spatial, flat.front) == ((9, 9), None)
    assert not any(isinstance(m, nn.MaxPool2d) for m in rebuild(adapter, flat, Initializer()).modules())
    last = adapter.adapt(2, spec, 2, "max_pool")
    assert last.front is not None
    assert (last.front.pool, last.output.spatial, last.repaired) == ("max_pool", (5, 5), True)


def test_an_even_kernel_without_its_stride_keeps_the_size() -> None:
    block = nn.Sequential(nn.Conv2d(8, 16, 2, 2), nn.BatchNorm2d(16))
    recipe, _ = place(block, 8, 16, channels=8, stride=1)
    assert recipe.output.spatial == (8, 8)


def test_what_repair_cannot_reach_gets_an_adapter_in_front() -> None:
    recipe, module = place(nn.Sequential(Bilinear(8), nn.ReLU()), 8, 8, channels=6)
    assert not recipe.repaired
    assert str(recipe.front) == "conv1x1+norm"
    assert recipe.params == 6 * 8 + 16 + 64
    assert isinstance(module.get_submodule("adapter"), nn.Sequential)


def test_a_layer_that_reads_another_layout_is_refused_with_the_reason() -> None:
    adapter = Adapter(analyse(net(conv(8, 8), 8, 8), (2, 3, 16, 16), max_cut=1))
    with pytest.raises(AdaptError, match="it reads NCHW, not NC") as error:
        adapter.adapt(1, TensorSpec((2, 16), layout="NC"), 1, "stride")
    assert error.value.where == "1"
    with pytest.raises(AdaptError, match="do not form a square image"):
        adapter.adapt(1, TensorSpec((2, 15, 8), layout="NLC"), 1, "stride")


def test_layers_of_one_signature_share_a_recipe() -> None:
    model = nn.Sequential(conv(3, 8), conv(8, 8), conv(8, 8), conv(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(16, 5))
    adapter = Adapter(analyse(model, (2, 3, 16, 16), max_cut=1))
    spec = TensorSpec((2, 4, 8, 8), layout="NCHW")
    one, two, other = (adapter.adapt(i, spec, 1, "stride") for i in (1, 2, 3))
    assert one.edits is two.edits
    assert (one.source, two.source) == (1, 2)
    assert other.edits is not one.edits


def test_an_in_place_start_never_overwrites_the_primary_networks_value() -> None:
    class Preactivated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU(inplace=True)
            self.conv = conv(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.conv(self.relu(x.view(x.shape))) + 0
            return result

    model = net(Preactivated(), 8, 8)
    adapter = Adapter(analyse(model, (2, 3, 16, 16), max_cut=1))
    recipe = adapter.adapt(1, TensorSpec((2, 8, 8, 8), layout="NCHW"), 1, "stride")
    x = torch.randn(2, 8, 8, 8)
    kept = x.clone()
    rebuild(adapter, recipe, Initializer())(x)
    assert torch.equal(x, kept)


def test_the_plan_says_what_could_not_be_placed() -> None:
    class Tokens(nn.Module):
        """An image layer, then token layers: nothing that reads tokens can follow an image."""

        def __init__(self) -> None:
            super().__init__()
            self.stem = conv(3, 8)
            self.layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
            self.head = nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.layers(self.stem(x).relu().flatten(2).transpose(1, 2))
            result: torch.Tensor = self.head(tokens.mean(1))
            return result

    plan = localize(Tokens(), d=2, example_inputs=torch.empty(2, 3, 8, 8)).plan
    for module in plan.modules[:-1]:
        assert module.auxiliary is not None
        assert (module.auxiliary.depth == 2) == (module.note == "")
    assert "instead of" in str(plan) or "left out" in str(plan) or all(not m.note for m in plan.modules)
