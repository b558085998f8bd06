"""Steps of which alike modules run once, against steps in which all do: the same bytes behind every operation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from localize import LocalGraphModule, localize
from localize.memory.chart import POINTS, dry_run_of, step_memory
from localize.memory.composed import ComposedRun
from localize.memory.dry_run import DryRun
from localize.memory.forecast import forecast
from localize.memory.replicas import meta_copy
from localize.memory.settings import StepSettings
from localize.models import cifar_resnet
from tests.models.dense_models import Segmenter

EXAMPLE = torch.zeros(2, 3, 32, 32)


def resnet(depth: int, method: str, **options: Any) -> LocalGraphModule:
    return localize(cifar_resnet(depth), method, example_inputs=EXAMPLE, seed=0, **options)


def vit() -> LocalGraphModule:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=4, num_classes=10)
    return localize(model, d=2, example_inputs=EXAMPLE, seed=0)


def densenet() -> LocalGraphModule:
    models = pytest.importorskip("torchvision.models")
    model = models.DenseNet(growth_rate=8, block_config=(2, 2, 2), num_init_features=16, num_classes=10)
    return localize(model, d=2, example_inputs=torch.zeros(2, 3, 64, 64), max_cut=8, seed=0)


class Scaled(nn.Module):
    """Alike blocks, each with a parameter that the model itself holds, in a list and by name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(6))
        self.scales = nn.ParameterList(torch.ones(8, 1, 1) for _ in range(6))
        self.shift_2, self.shift_4 = (nn.Parameter(torch.zeros(8, 1, 1)) for _ in range(2))
        self.unused = nn.Parameter(torch.zeros(5))
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        for i, (block, scale) in enumerate(zip(self.blocks, self.scales, strict=True)):
            x = (block(x) * scale).relu()
            if i in (2, 4):
                x = x + getattr(self, f"shift_{i}")
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


CASES: dict[str, Callable[[], LocalGraphModule]] = {
    "auglocal": lambda: resnet(20, "auglocal", d=2),
    "recomputed": lambda: resnet(14, "auglocal", d=2, recompute=True),
    "dgl": lambda: resnet(20, "dgl", modules=5),
    "predsim": lambda: resnet(14, "predsim"),
    "infopro": lambda: resnet(14, "infopro", modules=4),
    "gn-dgl": lambda: resnet(20, "gn-dgl", modules=6),
    "bp": lambda: resnet(14, "bp"),
    "mlaan": lambda: resnet(8, "mlaan", modules=3),
    "vit": vit,
    "parameters of the root": lambda: localize(Scaled(), d=2, example_inputs=EXAMPLE, seed=0),
    "densenet, wide cuts": densenet,
    "maps": lambda: localize(Segmenter((32, 32)), d=2, example_inputs=torch.zeros(2, 3, 32, 32), seed=0),
}


def exact(local: LocalGraphModule) -> DryRun:
    twin = meta_copy(local)
    assert isinstance(twin, LocalGraphModule)
    return DryRun(twin, StepSettings(), torch.device("cpu"))


@pytest.mark.parametrize("name", CASES)
def test_as_when_every_module_runs(name: str) -> None:
    local = CASES[name]()
    run = dry_run_of(local, StepSettings())
    whole = exact(local)
    found, known = forecast(run, 16), forecast(whole, 16)
    assert isinstance(run, ComposedRun) == (name != "mlaan")
    live = [[event.live for event in each.record(16).events] for each in (run, whole)]
    assert live[0] == live[1]
    assert [(m.peak, m.kept) for m in found.modules] == [(m.peak, m.kept) for m in known.modules]
    sums = [(f.peak, f.parameters, f.buffers, f.optimizer_state, f.gradients, f.batch) for f in (found, known)]
    assert sums[0] == sums[1]


def test_alike_modules_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    local, ran = resnet(32, "auglocal", d=2), list[str]()
    step = LocalGraphModule._step

    def noted(self: Any, module: Any, *rest: Any) -> Any:
        ran.append(module.plan.name)
        return step(self, module, *rest)

    monkeypatch.setattr(LocalGraphModule, "_step", noted)
    dry_run_of(local, StepSettings()).record(8)
    assert len(ran) < len(local.plan.modules)


def test_the_model_is_left_alone() -> None:
    local = resnet(14, "auglocal", d=2)
    local.eval()
    fired: list[int] = []
    local.primary.register_forward_hook(lambda *_: fired.append(1))
    for parameter in local.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(local.state_dict())
    held = [(id(p), id(p.grad)) for p in local.parameters()]
    random = torch.get_rng_state()
    dry_run_of(local, StepSettings()).record(8)
    assert [(id(p), id(p.grad)) for p in local.parameters()] == held
    assert all(torch.equal(value, before[name]) for name, value in local.state_dict().items())
    assert all(bool((p.grad == 1).all()) for p in local.parameters() if p.grad is not None)
    assert torch.equal(torch.get_rng_state(), random)
    assert not local.training
    assert not any(module.training for module in local.modules())
    assert fired == []


def test_a_model_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = cifar_resnet(14)
    local = localize(model, d=2, example_inputs=EXAMPLE, seed=0)
    assert step_memory(local, 16).own == step_memory(resnet(14, "auglocal", d=2), 16).own


def test_frozen_layers_and_a_loss_with_buffers() -> None:
    model = cifar_resnet(14)
    for parameter in model.conv1.parameters():
        parameter.requires_grad_(False)
    criterion = nn.CrossEntropyLoss(weight=torch.ones(10))
    local = localize(model, d=2, example_inputs=EXAMPLE, criterion=criterion, seed=0)
    assert dry_run_of(local, StepSettings()).record(8).peak() == exact(local).record(8).peak()


def test_hooks_that_compute_weights_run() -> None:
    model = cifar_resnet(8)
    torch.nn.utils.spectral_norm(model.conv1)
    local = localize(model, d=2, example_inputs=EXAMPLE, max_cut=1, seed=0)
    run = dry_run_of(local, StepSettings())
    assert not isinstance(run, ComposedRun)


def test_course_keeps_the_peak() -> None:
    local = resnet(14, "auglocal", d=2)
    memory = step_memory(local, 16)
    known = local.plan.memory(16)
    assert memory.rival is not None
    assert memory.own.peak == max(memory.own.live) == known.peak == memory.forecast.peak
    assert memory.rival.peak == max(memory.rival.live) == known.rivals[0].peak
    for course in (memory.own, memory.rival):
        assert len(course.live) <= POINTS
        assert course.spans[0].start == 0
        assert course.spans[-1].stop == course.operations
        assert all(a.stop == b.start for a, b in zip(course.spans, course.spans[1:], strict=False))
    assert {span.module for span in memory.own.spans} == set(range(len(local.plan.modules) + 1))
