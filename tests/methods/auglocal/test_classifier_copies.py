"""The primary network's own classifier, behind the outputs of its earlier layers."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from passes.adapt.adapter import Adapter
from passes.adapt.copy_recipe import CopyRecipe
from passes.adapt.rebuild import rebuild
from passes.common.initializer import Initializer
from passes.ir import TensorSpec
from passes.pipeline import analyse
from tests.tools.built import assert_built

CLASSES = 5


class Images(nn.Module):
    """Two convolutions of 6 and 8 channels, then a classifier."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1))
        self.classifier = classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.classifier(self.features(x).relu())
        return result


class Tokens(nn.Module):
    """A class token before the pixels; the classifier reads it alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.mix = nn.Linear(8, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], 1)
        tokens = tokens + self.mix(tokens).relu()
        result: torch.Tensor = self.head(self.norm(tokens)[:, 0])
        return result


def vgg(hidden: int = 12) -> nn.Module:
    """Pooling to 2x2, and three linear layers."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, hidden), nn.ReLU(), nn.Dropout(),
        nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, CLASSES),
    )  # fmt: skip


def convolutional() -> nn.Module:
    """Pooling, then a hidden convolution over one pixel (MobileNetV3)."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 16, 1), nn.Hardswish(), nn.Flatten(), nn.Linear(16, CLASSES)
    )


def copy(model: nn.Module, spec: TensorSpec, width: int | None = None) -> tuple[CopyRecipe, nn.Module]:
    """Build the classifier after ``spec``, and check it against its recipe."""
    adapter = Adapter(analyse(model, (2, 3, 8, 8), max_cut=1))
    recipe = adapter.adapt_classifier(spec, width)
    module = rebuild(adapter, recipe, Initializer(torch.Generator().manual_seed(0)))
    assert recipe.output.shape == (2, CLASSES)
    assert_built(recipe, module)
    return recipe, module


def image(channels: int, size: int = 8) -> TensorSpec:
    return TensorSpec((2, channels, size, size), layout="NCHW")


@pytest.mark.parametrize(("channels", "width"), [(8, None), (6, None), (6, 4), (3, 20)])
def test_hidden_layers_are_copied_in_the_width_asked_for(channels: int, width: int | None) -> None:
    recipe, module = copy(Images(vgg()), image(channels), width)
    hidden = width or 12
    linears = [(m.in_features, m.out_features) for m in module.modules() if isinstance(m, nn.Linear)]
    assert linears == [(4 * channels, hidden), (hidden, hidden), (hidden, CLASSES)]
    assert [m.num_features for m in module.modules() if isinstance(m, nn.BatchNorm1d)] == [hidden]
    assert recipe.macs == 4 * channels * hidden + hidden * hidden + hidden * CLASSES


@pytest.mark.parametrize("width", [None, 7])
def test_a_hidden_convolution_over_one_pixel(width: int | None) -> None:
    recipe, _ = copy(Images(convolutional()), image(6), width)
    assert recipe.macs == 6 * (width or 16) + (width or 16) * CLASSES


def test_the_class_token_is_read_where_the_primary_reads_it() -> None:
    model = Tokens()
    recipe, module = copy(model, TensorSpec((2, 5, 6), layout="NLC"))
    assert recipe.params == 6 * CLASSES + CLASSES
    tokens = torch.randn(2, 5, 6)
    changed = tokens.clone()
    changed[:, 1:] += 1
    assert torch.equal(module(tokens), module(changed))


@pytest.mark.parametrize("classifier", [vgg(), convolutional()])
def test_the_output_layer_is_the_last_one(classifier: nn.Sequential) -> None:
    adapter = Adapter(analyse(Images(classifier), (2, 3, 8, 8), max_cut=1))
    assert adapter.output_layer() is classifier[-1]


def test_a_convolution_over_many_pixels_is_no_output_layer() -> None:
    pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert Adapter(analyse(Images(pooling), (2, 3, 8, 8), max_cut=1)).output_layer() is None


def test_another_layout() -> None:
    recipe, _ = copy(Images(convolutional()), TensorSpec((2, 4, 6, 6), layout="NHWC"))
    assert recipe.front is not None
    assert recipe.front.to == "NCHW"


def test_further_outputs_are_no_part_of_it() -> None:
    class Two(nn.Module):
        """Logits, and other logits from the middle."""

        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict(OrderedDict(a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 8, 3)))
            self.head, self.aside = nn.Linear(8, CLASSES), nn.Linear(6, CLASSES)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            early = self.parts["a"](x).relu()
            late = self.parts["b"](early).relu()
            return self.head(late.mean((2, 3))), self.aside(early.mean((2, 3)))

    adapter = Adapter(analyse(Two(), (2, 3, 8, 8), output=0, max_cut=1))
    recipe = adapter.adapt_classifier(image(6))
    assert (recipe.params, recipe.source) == (6 * CLASSES + CLASSES, len(adapter.network.layers))
