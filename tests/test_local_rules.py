"""DGL, PredSim, InfoPro, and AugLocal with InfoPro's loss: any features, what a step computes, and what is refused."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from localize import InputError, LocalGraphModule, MethodError, Plan, localize
from localize.dense import ToGrid, grid_of_features
from localize.methods.predsim import pool_kernel
from localize.models import cifar_resnet
from localize.runtime.flops import count_flops
from localize.runtime.isolation import reach
from localize.supervision import Term, WithTerms
from passes.ir import TensorSpec
from tests.dense_models import Segmenter, UNet
from tests.zoo import assert_same, gradients

RULES = ["dgl", "predsim", "infopro", "auglocal+infopro"]
OWN = RULES[:3]
DECODING = RULES[2:]

every_rule = pytest.mark.parametrize("method", RULES)

Batch = tuple[torch.Tensor, torch.Tensor]


def images(samples: int = 4, size: tuple[int, int] = (16, 16), seed: int = 0) -> Batch:
    """Random images in [0, 1] and labels of five classes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, 3, *size, generator=generator), torch.randint(5, (samples,), generator=generator)


def small(method: str, **options: Any) -> LocalGraphModule:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = cifar_resnet(8, num_classes=5, width=4)
    options = {"d": 2, "seed": 0, "max_cut": 1, "example_inputs": images()[0], **options}
    return localize(model, method, **options)


def networks(auxiliary: nn.Module) -> list[nn.Module]:
    """What an auxiliary network is made of: the classifier, and those of further terms."""
    if not isinstance(auxiliary, WithTerms):
        return [auxiliary]
    return [auxiliary.classifier, *(term.network for term in auxiliary.terms.values() if isinstance(term, Term))]


def assert_as_planned(local: LocalGraphModule) -> None:
    """Parameters and multiply-accumulates of every auxiliary network, counted on what is built."""
    plan = local.plan
    assert Plan.from_json(plan.to_json()) == plan
    for planned, module in zip(plan.modules[:-1], local.local_modules, strict=False):
        assert planned.auxiliary is not None
        assert module.auxiliary is not None
        assert sum(p.numel() for p in module.auxiliary.parameters()) == planned.auxiliary.params
        shape = plan.layers[planned.layers[-1]].output.shape[1:]
        parts = networks(copy.deepcopy(module.auxiliary).to("meta"))
        assert sum(count_flops(part, shape).macs for part in parts) == planned.auxiliary.macs


# Features of any kind -------------------------------------------------------------------------------------------------


class Shaped(nn.Module):
    """A stem, and three layers on values in some layout; tokens may have a class token in front."""

    def __init__(self, layout: str, channels: int, token: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        layer = nn.Conv2d if layout == "NCHW" else nn.Linear
        size = (1,) if layout == "NCHW" else ()
        self.layers = nn.ModuleList(nn.Sequential(layer(channels, channels, *size), nn.GELU()) for _ in range(3))
        self.token = nn.Parameter(torch.zeros(1, 1, channels)) if token else None
        self.head = nn.Linear(channels, 5)
        self.layout = layout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        if self.layout == "NHWC":
            x = x.permute(0, 2, 3, 1)
        elif self.layout == "NLC":
            x = x.flatten(2).transpose(1, 2)
            if self.token is not None:
                x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        elif self.layout == "NC":
            x = x.mean((2, 3))
        for layer in self.layers:
            x = layer(x)
        dims = {"NCHW": (2, 3), "NHWC": (1, 2), "NLC": (1,), "NC": ()}[self.layout]
        logits: torch.Tensor = self.head(x.mean(dims) if dims else x)
        return logits


AFTER = ["layers.0", "layers.1", "layers.2"]


@settings(deadline=None, max_examples=25)
@given(
    layout=st.sampled_from(["NCHW", "NHWC", "NLC", "NC"]),
    channels=st.integers(2, 6),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    token=st.booleans(),
    method=st.sampled_from(RULES),
)
def test_any_width_resolution_and_layout(
    layout: str, channels: int, size: tuple[int, int], token: bool, method: str
) -> None:
    token = token and layout == "NLC"
    x, y = images(size=size)
    model = Shaped(layout, channels, token)
    options: dict[str, Any] = {"last": "single"} if method == "auglocal+infopro" else {}
    local = localize(model, method, d=2, seed=0, granularity=AFTER, example_inputs=x, verify=False, **options)
    assert len(local.plan.modules) == 3
    assert_as_planned(local)
    found = reach(local, x, y)
    assert (found.violations, found.untrained) == ((), ())
    for out in local.steps(x, y):
        assert out.logits.shape == (4, 5)
        assert bool(out.loss.isfinite())


@pytest.mark.parametrize("method", OWN)
def test_class_tokens_are_added_to_every_position(method: str) -> None:
    """What the loss reads of them, it teaches."""
    x, y = images(size=(4, 4))
    local = localize(Shaped("NLC", 6, True), method, seed=0, example_inputs=x, granularity=AFTER)
    out = next(local.steps(x, y))
    out.loss.backward()
    token = local.primary.get_parameter("token")
    assert token.grad is not None
    assert bool((token.grad != 0).any())


def test_tokens_of_an_image_that_is_no_square() -> None:
    x, _ = images(size=(4, 12))
    model = Shaped("NLC", 4, True)
    local = localize(model, "predsim", pooled_width=48, example_inputs=x, granularity=AFTER)
    auxiliary = local.plan.modules[0].auxiliary
    assert auxiliary is not None
    assert auxiliary.head == "tokens as image > pool(2x2) > linear(48, 5)"


@pytest.mark.parametrize(
    ("tokens", "image", "grid", "prefix"),
    [
        (197, (224, 224), (14, 14), 1),
        (201, (224, 224), (14, 14), 5),
        (25, (16, 96), (2, 12), 1),
        (36, (32, 32), (6, 6), 0),
        (7, (32, 32), (2, 2), 3),
        (13, (30, 50), (13, 1), 0),
        (9, (), (3, 3), 0),
    ],
)
def test_tokens_are_laid_out(tokens: int, image: tuple[int, ...], grid: tuple[int, int], prefix: int) -> None:
    """Row by row in the proportions of the image, as a square, or as a column; those in front are added on average."""
    found = grid_of_features(TensorSpec((2, tokens, 3), layout="NLC"), image)
    assert (found.size, found.prefix) == (grid, prefix)
    x = torch.arange(2 * tokens * 3, dtype=torch.float64).view(2, tokens, 3)
    laid = ToGrid(found, added=True)(x)
    assert laid.shape == (2, 3, *grid)
    front = x[:, :prefix].mean(1) if prefix else torch.zeros(2, 3)
    for row in range(grid[0]):
        for column in range(grid[1]):
            expected = x[:, prefix + row * grid[1] + column] + front
            torch.testing.assert_close(laid[:, :, row, column], expected)


# Shapes of auxiliary networks -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(
    channels=st.integers(1, 300),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    width=st.integers(1, 3000),
)
def test_pooling_windows(channels: int, size: tuple[int, int], width: int) -> None:
    """The fewest doublings, by turns, that meet the width: one fewer does not; and torch gives as many values."""
    kernel = pool_kernel(channels, size, width)
    left = [math.ceil(side / window) for side, window in zip(size, kernel, strict=True)]
    pooled = F.avg_pool2d(torch.empty(1, 1, *size), kernel, ceil_mode=True)
    assert list(pooled.shape[2:]) == left
    assert channels * math.prod(left) <= width or left == [1, 1]
    if max(kernel) > 1:
        smaller = [
            (max(1, 2 ** (math.ceil(math.log2(kernel[0])) - 1)), kernel[1]),
            (kernel[0], max(1, 2 ** (math.ceil(math.log2(kernel[1])) - 1))),
        ]
        counts = [math.prod(math.ceil(s / w) for s, w in zip(size, each, strict=True)) for each in smaller]
        assert max(counts) * channels > width


@pytest.mark.parametrize(
    ("options", "depth", "blocks"),
    [
        ({}, 6, ["conv1x1(4)/4", "conv1x1(4)", "conv1x1(4)", "linear(16)/2", "linear(16)"]),
        ({"convolutions": 1, "hidden": 1, "hidden_width": 7}, 3, ["conv1x1(4)/4", "linear(7)/2"]),
        ({"convolutions": 0}, 3, ["linear(16)/8", "linear(16)"]),
        ({"hidden": 0}, 4, ["conv1x1(4)/4", "conv1x1(4)", "conv1x1(4)"]),
        ({"hidden": 0, "convolutions": 0}, 1, []),
    ],
    ids=str,
)
def test_dgls_options(options: dict[str, Any], depth: int, blocks: list[str]) -> None:
    local = small("dgl", **options)
    assert_as_planned(local)
    auxiliary = local.plan.modules[0].auxiliary
    assert auxiliary is not None
    assert auxiliary.depth == depth
    assert f"d={depth}: {' '.join([*blocks, 'head'])}" in str(local.plan)
    x, y = images()
    assert reach(local, x, y).violations == ()


def test_infopros_classifier_is_as_wide_as_what_halves_next() -> None:
    """4 channels in the stem and the first block, 8 in the second, 16 in the last."""
    blocks = [module.auxiliary.blocks[0] for module in small("infopro").plan.modules if module.auxiliary]
    assert [(b.in_channels, b.out_channels, b.stride) for b in blocks] == [(4, 8, 2), (4, 8, 2), (8, 16, 2)]


# What a step computes -------------------------------------------------------------------------------------------------


def features(local: LocalGraphModule, x: torch.Tensor) -> torch.Tensor:
    """What the first module gives."""
    model = copy.deepcopy(local.primary)
    return model.relu(model.bn1(model.conv1(x)))  # type: ignore[no-any-return]


def slow_loss(method: str, parts: list[nn.Module], h: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The local loss of the first module as the papers write it."""
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


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("dgl", {"convolutions": -1}, "convolutions=-1 is not possible. Give a whole number of at least 0"),
        ("dgl", {"hidden": 1.5}, "hidden=1.5 is not possible"),
        ("dgl", {"hidden_width": 0}, "hidden_width=0 is not possible"),
        ("dgl", {"beta": 1}, "method 'dgl' has no option 'beta'. Its options: convolutions, hidden, hidden_width"),
        ("predsim", {"beta": 1.5}, "beta=1.5 is no weight. Give a number from 0 to 1"),
        ("predsim", {"pooled_width": True}, "pooled_width=True is not possible"),
        ("predsim", {"zero_init": 1}, "zero_init=1 is unknown"),
        ("infopro", {"alpha_first": -1}, "alpha_first=-1 is no weight"),
        ("infopro", {"beta_last": math.nan}, "beta_last=nan is no weight"),
        ("infopro", {"std": 0}, "std=0 is no std of images. Give a number above 0"),
        ("infopro", {"mean": ()}, r"mean=\(\) is no mean of images"),
        ("infopro", {"mean": (0.1, 0.2)}, "has 2 numbers, and images have 3 channels"),
        ("infopro", {"hidden_width": 0}, "hidden_width=0 is not possible"),
        ("auglocal+infopro", {"decoder_width": 0}, "decoder_width=0 is not possible"),
        ("auglocal+infopro", {"tau": 2}, "tau=2 is no decay"),
    ],
)
def test_options_are_checked(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        small(method, **options)


@pytest.mark.parametrize(
    ("target", "got"),
    [
        (torch.rand(4), r"float32, of shape \(4,\)"),
        (torch.zeros(4, 1, dtype=torch.int64), r"int64, of shape \(4, 1\)"),
        (torch.rand(4, 3), r"float32, of shape \(4, 3\)"),
        ({"labels": torch.zeros(4)}, "a dict"),
    ],
    ids=str,
)
def test_predsim_needs_class_labels(target: Any, got: str) -> None:
    local = small("predsim", criterion=lambda logits, y: logits.square().mean())
    message = rf"similarity loss of PredSim needs class labels \(in conv1\): the target is {got}. Give class indices"
    with pytest.raises(InputError, match=message):
        next(local.steps(images()[0], target))


def test_predsim_needs_two_classes() -> None:
    model = cifar_resnet(8, num_classes=1, width=4)
    with pytest.raises(MethodError, match="at least two classes"):
        localize(model, "predsim", example_inputs=images()[0])


@pytest.mark.parametrize("method", DECODING)
def test_images_must_be_where_they_are_said_to_be(method: str) -> None:
    """Images that were normalized, and the option forgotten; and the same, undone."""
    x, y = images()
    mean, std = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    normalized = (x - shift) / scale
    with pytest.raises(
        InputError, match=r"% of the images' values are outside \[0, 1\].*goes from -.*Give the mean= and"
    ):
        next(small(method).steps(normalized, y))
    undone = small(method, mean=list(mean), std=std)
    assert undone.plan.options["mean"] == mean
    plain = next(small(method).steps(x, y)).loss
    assert bool(plain.isfinite())
    assert bool(next(undone.steps(normalized, y)).loss.isfinite())
    assert Plan.from_json(undone.plan.to_json()) == undone.plan
    assert undone.plan.modules[0].auxiliary is not None
    assert "images * (0.25, 0.2, 0.3) + (0.5, 0.4, 0.3)" in undone.plan.modules[0].auxiliary.terms[0].network


def test_a_little_noise_is_cut_off() -> None:
    x, y = images()
    x[0, :, :2, :2] = 3.0
    out = next(small("infopro").steps(x, y))
    assert bool(out.loss.isfinite())


def test_only_images_are_reconstructed() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 5))
    with pytest.raises(MethodError, match=r"reconstructs images \(N, C, H, W\), and the model's input is 6"):
        localize(model, "infopro", example_inputs=torch.empty(2, 6))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("dgl", r"a value of shape 4x4x8x8 \(NCDHW\) is no image, and holds neither tokens nor plain features"),
        ("predsim", r"a value of shape 4x4x8x8 \(NCDHW\) is no image, and holds neither tokens nor plain features"),
        ("infopro", r"reconstructs images \(N, C, H, W\), and the model's input is 1x4x8x8"),
        ("auglocal+infopro", r"reconstructs images \(N, C, H, W\), and the model's input is 1x4x8x8"),
    ],
)
def test_volumes_are_refused(method: str, message: str) -> None:
    units = [nn.Sequential(nn.Conv3d(a, 4, 3, 1, 1), nn.BatchNorm3d(4), nn.ReLU()) for a in (1, 4, 4)]
    model = nn.Sequential(*units, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 5))
    with pytest.raises(MethodError, match=message):
        localize(model, method, example_inputs=torch.empty(2, 1, 4, 8, 8))
