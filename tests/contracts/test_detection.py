"""Backbones whose model returns no logits: local losses of their own, and the whole output's loss at the end."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from localize import InputError, LocalGraphModule, MethodError, Plan, localize
from passes.ir import Network
from passes.partition.flow import Flow
from passes.partition.output_choice import fusion_points
from passes.pipeline import analyse
from tests.models.dense_models import Pyramid
from tests.models.zoo import assert_same, gradients
from tests.tools.isolated import assert_isolated

CLASSES = 5
X = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([[1.0, 0, 1, 0, 0], [0, 0, 0, 0, 1], [1, 1, 1, 0, 0]])


def spread(levels: Any, target: Any) -> torch.Tensor:
    """Return a loss of all levels."""
    if "levels" in levels:
        assert levels["names"] == "fine to coarse"
        levels = dict(enumerate(levels["levels"]))
    losses = [level.square().mean() * (k + 1) for k, level in levels.items()]
    return torch.stack(losses).sum() + 0.0 * torch.sum(target)


def analysed(model: nn.Module, **options: Any) -> Network:
    return analyse(model, X.shape, **options)


# Where a pyramid is cut -----------------------------------------------------------------------------------------------


def test_a_pyramid_is_cut_in_its_backbone_only() -> None:
    network = analysed(Pyramid(), joint=True)
    part, captured = network.partition, network.captured
    # The coarsest level ends the trunk; it was the last of the user's values.
    assert captured.result.target == "smooth.2"
    assert network.shapes.output.spatial == (4, 4)
    assert [layer.width for layer in part.layers] == [1] * 6
    assert [layer.name for layer in part.layers] == [f"stages.{i}.{j}" for i in range(3) for j in range(2)]
    inside = {str(captured.by_name[name].target) for name in part.classifier}
    assert {f"{kind}.{i}" for kind in ("lateral", "smooth") for i in range(3)} <= inside
    # The other way: with the finest level as the output, early stages stay alive, and levels become local layers.
    finest = analysed(Pyramid(), output=0)
    assert max(layer.width for layer in finest.partition.layers) > 1
    assert [layer.name for layer in finest.partition.layers][-1].startswith("lateral")


def test_outputs_that_read_one_tensor_fuse_nothing() -> None:
    class Stages(nn.Module):
        """Features of three stages, the first through a convolution of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.pyramid = Pyramid()

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            found = []
            for stage in self.pyramid.stages:
                x = stage(x)
                found.append(x)
            return self.pyramid.lateral[0](found[0]), found[1], found[2]

    network = analysed(Stages(), joint=True)
    assert fusion_points(Flow(network.captured, network.shapes)) == []
    assert network.shapes.output.spatial == (4, 4)
    assert [layer.width for layer in network.partition.layers] == [1] * 5
    assert [*network.captured.structure.rebuild(["c", "a", "b"])] == ["a", "b", "c"]
    fused = analysed(Pyramid(), joint=True)
    (point,) = fusion_points(Flow(fused.captured, fused.shapes))
    assert str(fused.captured.by_name[point].target) == "lateral.2"


def test_what_is_fused_before_anything_is_learned_changes_nothing() -> None:
    class Early(nn.Module):
        """Returns, beside its features, a sum of two things that no layer has touched."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            double = x * 2
            shifted = double + 1
            return double + shifted, self.layers(shifted)

    assert [layer.name for layer in analysed(Early(), joint=True).partition.layers] == ["layers.0", "layers.2"]


# Training -------------------------------------------------------------------------------------------------------------


def detector_like(wrapped: bool = False, **options: Any) -> LocalGraphModule:
    arguments: dict[str, Any] = {"d": 2, "example_inputs": X, "outputs": CLASSES, "seed": 0, "output_criterion": spread}
    return localize(Pyramid(wrapped), criterion=nn.BCEWithLogitsLoss(), **{**arguments, **options})


@pytest.mark.parametrize("wrapped", [False, True])
def test_losses_by_hand(wrapped: bool) -> None:
    local = detector_like(wrapped)
    assert str(local.plan.prediction) == f"{CLASSES} logits"
    assert f"; local losses on {CLASSES} logits" in str(local.plan)
    assert Plan.from_json(local.plan.to_json()) == local.plan
    assert "lateral.2.weight" in local.plan.modules[-1].parameters
    whole = copy.deepcopy(local.primary)(X)
    *outs, last = local.steps(X, Y)
    for out in outs:
        assert out.logits.shape == (3, CLASSES)
        torch.testing.assert_close(out.loss, F.binary_cross_entropy_with_logits(out.logits, Y))
    assert type(last.logits) is type(whole)
    assert last.logits.keys() == whole.keys()
    torch.testing.assert_close(last.loss, spread(whole, Y))


def test_each_loss_reaches_its_own_module() -> None:
    local = detector_like()
    apart = assert_isolated(local, X, Y)
    local.zero_grad()
    local.loss(X, Y).backward()
    assert_same(gradients(local), apart)


def test_frozen_stages_have_no_loss_of_their_own() -> None:
    model = Pyramid()
    for stage in model.stages[:2]:
        stage.requires_grad_(False)
    local = localize(
        model,
        d=2,
        example_inputs=X,
        outputs=CLASSES,
        criterion=nn.BCEWithLogitsLoss(),
        output_criterion=spread,
        last="single",
        seed=0,
    )
    assert [module.layers for module in local.plan.modules] == [(0, 1, 2, 3, 4), (5,)]
    apart: dict[str, torch.Tensor] = {}
    for out in local.steps(X, Y):
        local.zero_grad()
        out.loss.backward()
        apart |= gradients(local)
    assert apart.keys() == {name for name, p in local.named_parameters() if p.requires_grad}
    evenly = localize(model, d=2, example_inputs=X, outputs=CLASSES, output_criterion=spread, modules=3, seed=0)
    assert [len(module.layers) for module in evenly.plan.modules] == [2, 2, 2]


class Weighted(nn.Module):
    """A loss with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(6, 2, 1) for _ in range(3))

    def forward(self, levels: Any, target: Any) -> torch.Tensor:
        losses = [head(level).square().mean() for head, level in zip(self.heads, levels.values(), strict=True)]
        return torch.stack(losses).sum()


def test_parameters_of_the_output_criterion_are_trained_by_the_last_loss() -> None:
    criterion = Weighted()
    local = detector_like(output_criterion=criterion)
    names = {name for name, _ in local.named_parameters() if name.startswith("output_criterion.")}
    assert len(names) == 6
    found: dict[str, torch.Tensor] = {}
    for out in local.steps(X, Y):
        local.zero_grad()
        out.loss.backward()
        reached = gradients(local)
        assert (names & reached.keys()) == (names if out.name == local.plan.modules[-1].name else set())
        found |= reached
    local.zero_grad()
    local.loss(X, Y).backward()
    assert_same(gradients(local), found)
    twin = copy.deepcopy(local)
    assert twin.output_criterion is not criterion
    twin.zero_grad()
    twin.loss(X, Y).backward()
    assert_same(gradients(twin), found)


def test_the_output_criterion_may_hold_the_primary_network_too() -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.loss = Pyramid(), Weighted()

        def forward(self, levels: Any, target: Any) -> torch.Tensor:
            result: torch.Tensor = self.loss(levels, target)
            return result

    detector = Detector()
    options: dict[str, Any] = {"d": 2, "example_inputs": X, "outputs": CLASSES, "criterion": nn.BCEWithLogitsLoss()}
    local = localize(detector.backbone, output_criterion=detector, seed=0, **options)
    owned = [id(p) for k in range(len(local.plan.modules)) for p in local.parameters_of(k)]
    assert sorted(owned) == sorted(id(p) for p in local.parameters())
    local.loss(X, Y).backward()
    twin = copy.deepcopy(local)
    copied: Any = twin.output_criterion
    assert copied.backbone is twin.primary
    twin.zero_grad()
    twin.loss(X, Y).backward()
    assert_same(gradients(twin), gradients(local))


def test_parameters_that_nobody_would_train_are_refused() -> None:
    criterion = Weighted()
    local = detector_like(output_criterion=lambda levels, target: 2 * criterion(levels, target))
    with pytest.raises(InputError, match=r"parameters that local\.loss\(\) does not know of.*nn\.Module"):
        local.loss(X, Y)
    for out in local.steps(X, Y):
        out.loss.backward()
    assert all(p.grad is not None for p in criterion.parameters())


def test_backpropagation_takes_the_same_arguments() -> None:
    local = detector_like(method="bp", d=4)
    (out,) = local.steps(X, Y)
    torch.testing.assert_close(out.loss, spread(copy.deepcopy(local.primary)(X), Y))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no outputs": ({"outputs": None}, r"ambiguous output: the model returns \d values.*outputs=.*output=0 or output=1"),
    "no number": ({"outputs": 0}, "outputs must be an integer >= 1, got 0"),
    "a word": ({"outputs": "five"}, "outputs must be an integer >= 1, got 'five'"),
    "no criterion for the end": (
        {"output_criterion": None, "output": 2},
        "outputs=5 is for local losses, and the model returns 6x4x4.*output_criterion=",
    ),
    "a criterion that learns": ({"criterion": Weighted()}, "criterion has trainable parameters.*output_criterion"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    options, message = REFUSED[case]
    arguments = {"outputs": CLASSES, "output_criterion": spread, "criterion": nn.BCEWithLogitsLoss(), **options}
    with pytest.raises(MethodError, match=message):
        localize(Pyramid(), example_inputs=X, **arguments)


def test_errors_in_the_output_criterion_say_what_it_was_given() -> None:
    local = detector_like(output_criterion=lambda levels, target: levels["finest"])
    message = "from an output of type dict and a target of shape .* is given what the model returns"
    with pytest.raises(InputError, match=message):
        list(local.steps(X, Y))


# torchvision's detectors ----------------------------------------------------------------------------------------------


class RetinaNetLoss(nn.Module):
    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.head, self.anchors, self.compute = detector.head, detector.anchor_generator, detector.compute_loss

    def forward(self, features: dict[str, torch.Tensor], target: Any) -> torch.Tensor:
        images, boxes = target
        levels = list(features.values())
        losses = self.compute(boxes, self.head(levels), self.anchors(images, levels))
        return torch.stack(list(losses.values())).sum()


class FasterRCNNLoss(nn.Module):
    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.rpn, self.roi_heads = detector.rpn, detector.roi_heads

    def forward(self, features: dict[str, torch.Tensor], target: Any) -> torch.Tensor:
        images, boxes = target
        proposals, first = self.rpn(images, features, boxes)
        _, second = self.roi_heads(features, proposals, images.image_sizes, boxes)
        return torch.stack([*first.values(), *second.values()]).sum()


def present(logits: torch.Tensor, target: Any) -> torch.Tensor:
    """Which classes are in the image."""
    found = torch.zeros_like(logits)
    for row, boxes in zip(found, target[1], strict=True):
        row[boxes["labels"]] = 1
    return F.binary_cross_entropy_with_logits(logits, found)


DETECTORS = {"retinanet_resnet50_fpn": RetinaNetLoss, "fasterrcnn_resnet50_fpn": FasterRCNNLoss}


@pytest.mark.parametrize(
    "name", ["retinanet_resnet50_fpn", pytest.param("fasterrcnn_resnet50_fpn", marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("ignore:Changing trainable_backbone_layers")
def test_torchvision(name: str) -> None:
    build: Any = getattr(torchvision.models.detection, name)
    sizes = {"min_size": 64, "max_size": 64, "num_classes": CLASSES}
    detector = build(weights=None, weights_backbone=None, **sizes).train()
    boxes = [
        {"boxes": torch.tensor([[4.0, 4, 30, 40]]), "labels": torch.tensor([1])},
        {"boxes": torch.tensor([[20.0, 14, 60, 60], [1, 1, 20, 20]]), "labels": torch.tensor([2, 4])},
    ]
    images, boxes = detector.transform([torch.rand(3, 64, 64), torch.rand(3, 64, 64)], boxes)
    x, y = images.tensors, (images, boxes)
    local = localize(
        detector.backbone,
        d=2,
        example_inputs=x,
        outputs=CLASSES,
        criterion=present,
        output_criterion=DETECTORS[name](detector),
        seed=0,
        verify=False,
    )
    assert local.plan.opaque == ()
    assert len(local.plan.layers) == 17
    assert all(layer.width == 1 for layer in local.plan.layers)
    everything = {id(p) for p in detector.parameters()}
    assert everything <= {id(p) for p in local.parameters()}
    owner = {id(p): k for k in range(len(local.plan.modules)) for p in local.parameters_of(k)}
    assert {id(p) for p in local.parameters()} == owner.keys()
    pyramid = {n for n, _ in detector.backbone.named_parameters() if n.startswith("fpn.")}
    assert pyramid <= {*local.plan.modules[-1].parameters}
    torch.manual_seed(5)
    found: dict[str, torch.Tensor] = {}
    for k, out in enumerate(local.steps(x, y)):
        local.zero_grad()
        out.loss.backward()
        reached = gradients(local)
        found |= reached
        assert torch.isfinite(out.loss)
        assert {owner[id(p)] for p in local.parameters() if p.grad is not None} == {k}
    assert found.keys() == {name for name, _ in local.named_parameters()}
    assert all(bool(g.isfinite().all()) for g in found.values())
    assert detector.backbone(x).keys() == out.logits.keys()
    local.zero_grad()
    torch.manual_seed(5)
    local.loss(x, y).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in local.parameters())
    if name.startswith("retinanet"):  # it draws no samples of boxes
        assert_same(gradients(local), found)


@pytest.mark.parametrize(
    "name",
    [
        "ssd300_vgg16",
        pytest.param("fcos_resnet50_fpn", marks=pytest.mark.slow),
        pytest.param("maskrcnn_resnet50_fpn", marks=pytest.mark.slow),
        pytest.param("retinanet_resnet50_fpn_v2", marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:Changing trainable_backbone_layers")
def test_other_detectors(name: str) -> None:
    """Their backbones are cut where one tensor crosses; what outputs share is trained with the last module."""
    build: Any = getattr(torchvision.models.detection, name)
    with torch.device("meta"):
        backbone = build(weights=None, weights_backbone=None, num_classes=CLASSES).backbone
    x = torch.empty(2, 3, 300, 300)
    plan = localize(backbone, d=2, outputs=CLASSES, output_criterion=spread, example_inputs=x).plan
    assert plan.opaque == ()
    assert len(plan.layers) > 15
    assert all(layer.width == 1 for layer in plan.layers)
    assert {name for name, _ in backbone.named_parameters() if name.startswith("fpn.")} <= {
        *plan.modules[-1].parameters
    }
