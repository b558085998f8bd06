"""Dense tasks: maps of logits from every local module, held against what their heads are said to be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from localize import InputError, LocalGraphModule, MethodError, Plan, Prediction, localize
from localize.methods.networks.dense import grid_of
from localize.methods.networks.heads import build_head, describe_head, head_cost
from localize.runtime.local_graph import HEAD_WEIGHT
from passes.common.initializer import Initializer
from passes.ir import Layout, TensorSpec
from passes.shapes.costs import CostMode
from tests.models.dense_models import CLASSES, ChannelsLast, Segmenter, UNet, Volumes
from tests.models.graphs import bounded
from tests.models.zoo import assert_same, gradients
from tests.tools.isolated import assert_isolated
from tests.tools.oracle import assert_equals_oracle

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "u-net, transposed convolutions": (lambda: UNet(True), (3, 16, 16)),
    "u-net, interpolation": (lambda: UNet(False), (3, 16, 24)),
    "tokens": (lambda: Segmenter((16, 24)), (3, 16, 24)),
    "channels last": (ChannelsLast, (3, 8, 12)),
    "volumes": (Volumes, (1, 4, 8, 8)),
}


def data(shape: tuple[int, ...], size: tuple[int, ...], samples: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(samples, *shape, generator=generator),
        torch.randint(CLASSES, (samples, *size), generator=generator),
    )


def assert_as_planned(local: LocalGraphModule, x: torch.Tensor) -> None:
    """Every auxiliary network has the parameters and costs of the plan, and gives a map of the output's shape."""
    values: dict[str, Any] = {local.local_modules[0].inputs[0]: x}
    for planned, module in zip(local.plan.modules, local.local_modules, strict=True):
        read = local._run(module, values)
        if planned.auxiliary is None:
            continue
        assert module.auxiliary is not None
        assert planned.auxiliary.params == sum(p.numel() for p in module.auxiliary.parameters())
        with CostMode(len(x)) as cost, torch.no_grad():
            logits = module.logits(*read)
        assert planned.auxiliary.macs == cost.take().macs
        assert logits.shape[1:] == local.plan.output.shape[1:]
    assert f"; local losses on {CLASSES} logits at " in str(local.plan)
    assert Plan.from_json(local.plan.to_json()) == local.plan


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("name", MODELS)
def test_every_module_learns_from_a_map(name: str, d: int) -> None:
    build, shape = MODELS[name]
    model = build()
    local = localize(model, d=d, last="single", seed=0, example_inputs=torch.empty(2, *shape))
    prediction = local.plan.prediction
    assert (prediction.kind, prediction.outputs) == ("dense", CLASSES)
    x, y = data(shape, prediction.size)
    assert_as_planned(copy.deepcopy(local), x)
    apart = assert_isolated(copy.deepcopy(local), x, y)
    assert all(bool(g.isfinite().all()) for g in apart.values())
    for out in local.steps(x, y):
        scores = out.logits.flatten(0, 2) if name == "channels last" else out.logits
        torch.testing.assert_close(out.loss, F.cross_entropy(scores, y.flatten() if name == "channels last" else y))
    local.loss(x, y).backward()
    assert all(bool(g.isfinite().all()) for g in gradients(local).values())
    with torch.no_grad():
        assert torch.equal(local.eval()(x), model.eval()(x))


def test_one_scalar_gives_the_same_gradients() -> None:
    x, y = data((3, 16, 16), (16, 16))
    local = localize(UNet(True), d=2, seed=0, example_inputs=x)
    apart = assert_isolated(local, x, y)
    local.zero_grad()
    local.loss(x, y).backward()
    assert_same(gradients(local), apart)


class Gated(nn.Module):
    """Convolutions, each followed by a squeeze-excite."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(a, 6, 3, padding=1) for a in (3, 6, 6))
        self.squeeze = nn.ModuleList(nn.Conv2d(6, 2, 1) for _ in range(3))
        self.excite = nn.ModuleList(nn.Conv2d(2, 6, 1) for _ in range(3))
        self.classifier = nn.Conv2d(6, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, squeeze, excite in zip(self.convs, self.squeeze, self.excite, strict=True):
            x = conv(x)
            x = x * excite(squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        result: torch.Tensor = self.classifier(x)
        return result


def test_maps_are_predicted_where_there_are_positions() -> None:
    """Not inside a squeeze-excite, however wide cuts may be."""
    x, y = data((3, 8, 8), (8, 8))
    local = localize(Gated(), d=2, last="single", max_cut=3, example_inputs=x, seed=0)
    assert {layer.output.spatial for layer in local.plan.layers} == {(8, 8)}
    assert len(local.plan.layers) > 3
    assert_isolated(local, x, y)


@pytest.mark.parametrize("transposed", [True, False])
def test_a_u_net_equals_the_oracle(transposed: bool) -> None:
    x, y = data((3, 16, 16), (16, 16))
    local = localize(UNet(transposed), d=3, last="single", max_cut=3, seed=0, example_inputs=x)
    assert max(layer.width for layer in local.plan.layers) == 3
    assert local.plan.layers[-1].output.spatial == (16, 16)
    assert_equals_oracle(local, x, y, max_cut=3)


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50"])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_torchvision(name: str, auxiliary: bool) -> None:
    build: Any = getattr(torchvision.models.segmentation, name)
    model = build(weights=None, weights_backbone=None, num_classes=21, aux_loss=auxiliary)
    x = torch.randn(2, 3, 64, 64)
    y = torch.randint(21, (2, 64, 64))
    y[:, :7] = 255
    criterion = nn.CrossEntropyLoss(ignore_index=255)
    local = localize(
        model, d=2, example_inputs=x, output="out" if auxiliary else None, criterion=criterion, seed=0, verify=False
    )
    # Stem and 16 blocks; FCN: the head's 3x3 convolution; DeepLab: the pyramid pooling, its projection, and a 3x3 one.
    assert len(local.plan.layers) == {"fcn_resnet50": 18, "deeplabv3_resnet50": 20}[name]
    assert all(layer.width == 1 for layer in local.plan.layers)
    last = f"classifier.{4}.weight"
    assert last in local.plan.modules[-1].parameters
    assert ("aux_classifier.4.weight" in local.plan.modules[-1].parameters) == auxiliary
    heads = {module.auxiliary.head.partition(" > ")[2] for module in local.plan.modules if module.auxiliary}
    assert heads == {f"conv1x1({512 if name.startswith('fcn') else 256}, 21) > bilinear(64x64)"}
    owner = {id(p): k for k in range(len(local.plan.modules)) for p in local.parameters_of(k)}
    assert {id(p) for p in local.parameters()} == owner.keys()
    for k, out in enumerate(local.steps(x, y)):
        local.zero_grad()
        out.loss.backward()
        assert torch.isfinite(out.loss)
        assert out.logits.shape == (2, 21, 64, 64)
        assert {owner[id(p)] for p in local.parameters() if p.grad is not None} == {k}
        assert all(p.grad is not None for p in local.parameters_of(k))
    with torch.no_grad():
        assert local.eval()(x).keys() == model(x).keys()


def test_an_auxiliary_classifier_does_not_keep_the_main_one_from_being_cut() -> None:
    build = torchvision.models.segmentation.fcn_resnet50
    with torch.device("meta"):
        models = [build(weights=None, weights_backbone=None, num_classes=21, aux_loss=a) for a in (None, True)]
    plans = [localize(m, output="out", example_inputs=torch.empty(2, 3, 64, 64)).plan for m in models]
    assert [layer.name for layer in plans[0].layers] == [layer.name for layer in plans[1].layers]


class TwoHeads(nn.Module):
    """A map of logits, and another from halfway."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(a, 6, 3, padding=1) for a in (3, 6, 6))
        self.heads = nn.ModuleList(nn.Conv2d(6, CLASSES, 1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = [x]
        for conv in self.convs:
            features.append(conv(features[-1]).relu())
        return {"out": self.heads[0](features[3]), "aux": self.heads[1](features[2])}


def test_the_last_loss_by_hand() -> None:
    model = TwoHeads()
    x, y = data((3, 8, 8), (8, 8))
    *_, out = localize(model, d=2, output="out", example_inputs=x, seed=0).steps(x, y)
    result = model(x)
    expected = F.cross_entropy(result["out"], y) + HEAD_WEIGHT * F.cross_entropy(result["aux"], y)
    torch.testing.assert_close(out.loss, expected)

    def weighted(result: Any, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(result["out"], target) + 0.5 * F.cross_entropy(result["aux"], target)

    first, *_, out = localize(model, d=2, output="out", example_inputs=x, seed=0, output_criterion=weighted).steps(x, y)
    assert {*out.logits} == {"out", "aux"}
    torch.testing.assert_close(out.loss, weighted(result, y))
    torch.testing.assert_close(first.loss, F.cross_entropy(first.logits, y))
    with pytest.raises(
        MethodError, match=r"ambiguous output: the model returns 2 values.*output='out' or output='aux'"
    ):
        localize(model, d=2, example_inputs=x, output_criterion=weighted)


def test_ignored_pixels_do_not_count() -> None:
    x, y = data((3, 8, 8), (8, 8))
    y[0] = 255
    criterion = nn.CrossEntropyLoss(ignore_index=255)
    for out in localize(TwoHeads(), d=2, output="out", example_inputs=x, seed=0, criterion=criterion).steps(x, y):
        if out.name == "convs.0":
            torch.testing.assert_close(out.loss, F.cross_entropy(out.logits[1:], y[1:]))


def test_crops_are_of_one_size() -> None:
    local = localize(UNet(True), d=2, example_inputs=torch.empty(2, 3, 16, 16))
    with pytest.raises(InputError, match="the input is 24x24, and local losses were made for maps of 16x16 input"):
        local.loss(*data((3, 24, 24), (24, 24)))
    assert local.eval()(torch.zeros(1, 3, 24, 24)).shape == (1, CLASSES, 24, 24)


@bounded(60)
@given(
    layout=st.sampled_from(["NCHW", "NHWC", "NLC", "NC", "NCDHW"]),
    channels=st.integers(1, 9),
    outputs=st.integers(1, 7),
    grid=st.tuples(st.integers(2, 5), st.integers(2, 5), st.integers(2, 3)),
    factor=st.integers(1, 4),
    prefix=st.integers(0, 3),
    norm=st.booleans(),
    last=st.booleans(),
)
def test_dense_heads(
    layout: Layout,
    channels: int,
    outputs: int,
    grid: tuple[int, ...],
    factor: int,
    prefix: int,
    norm: bool,
    last: bool,
) -> None:
    """Shape, parameters, costs and values of a head, against a linear layer at each position of the grid."""
    rank = 3 if layout == "NCDHW" else 2
    grid = (1,) * rank if layout == "NC" else grid[:rank]
    size = tuple(side * factor for side in grid)
    count = grid[0] * grid[1]
    if (
        layout == "NLC"
        and grid_of(TensorSpec((2, count + prefix, 1), layout="NLC"), Prediction("dense", 1, size)).size != grid
    ):
        # As many tokens make a finer grid of another place for them.
        prefix = 0
    shape = {
        "NCHW": (4, channels, *grid),
        "NCDHW": (4, channels, *grid),
        "NHWC": (4, *grid, channels),
        "NLC": (4, count + prefix, channels),
        "NC": (4, channels),
    }[layout]
    out: Layout = "NCDHW" if rank == 3 else "NHWC" if last else "NCHW"
    spec, prediction = TensorSpec(shape, layout=layout), Prediction("dense", outputs, size, out)
    head = build_head(spec, prediction, batch_norm=norm, draw=Initializer(torch.Generator().manual_seed(0))).eval()
    x = torch.randn(shape)
    with CostMode(4) as cost:
        found = head(x)
    params, macs = head_cost(spec, prediction, norm)
    assert (params, macs) == (sum(p.numel() for p in head.parameters()), cost.take().macs)
    words = describe_head(spec, prediction, norm)
    assert ("batch_norm" in words, "linear(" in words) == (norm, size != grid)
    classifier: Any = head.classifier
    positions = x[:, prefix:] if layout == "NLC" else x.movedim(1, -1) if layout in ("NCHW", "NCDHW") else x
    # Running statistics of a fresh norm are 0 and 1.
    positions = positions / (1 + 1e-5) ** 0.5 if norm else positions
    expected = (
        F.linear(positions, classifier.weight.flatten(1), classifier.bias).reshape(4, *grid, outputs).movedim(-1, 1)
    )
    expected = F.interpolate(expected, size=size, mode="trilinear" if rank == 3 else "bilinear")
    torch.testing.assert_close(found, expected.movedim(1, -1) if out == "NHWC" else expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "grid", "prefix"), [(196, (14, 14), 0), (197, (14, 14), 1), (201, (14, 14), 5), (49, (7, 7), 0)]
)
def test_tokens_hold_the_grid_of_their_patches(tokens: int, grid: tuple[int, int], prefix: int) -> None:
    found = grid_of(TensorSpec((2, tokens, 8), layout="NLC"), Prediction("dense", 21, (224, 224), "NCHW"))
    assert (found.size, found.prefix) == (grid, prefix)


@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec((2, 100, 8), layout="NLC"),
        TensorSpec((2, 8, 2, 4, 4), layout="NCDHW"),
        TensorSpec((2, 3, 3, 3, 3), layout="other"),
    ],
    ids=str,
)
def test_what_holds_no_grid_is_refused(spec: TensorSpec) -> None:
    prediction = Prediction("dense", 21, (224, 224), "NCHW")
    for refused in (
        lambda: head_cost(spec, prediction, False),
        lambda: describe_head(spec, prediction, False),
        lambda: build_head(spec, prediction, batch_norm=False, draw=Initializer()),
    ):
        with pytest.raises(MethodError, match=r"cannot be turned into a map of 21 logits at 224x224.*granularity="):
            refused()
