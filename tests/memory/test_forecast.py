"""The memory forecast of a training step: against counted steps, torch's own MemTracker, and arithmetic."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import pickle
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from localize import LocalGraphModule, LocalizeError, Plan, PlanError, localize
from localize.memory.dry_run import DryRun
from localize.memory.forecast import Curve, forecast
from localize.memory.peak import measure, peak_step_bytes
from localize.memory.replicas import meta_copy
from localize.memory.settings import StepSettings
from localize.models import CifarResNet, cifar_resnet
from localize.plan.memory_forecast import MemoryForecast
from localize.runtime.named_optimizers import OPTIMIZERS
from localize.runtime.options import OptionError
from localize.training.recipe import Recipe
from tests.models.dense_models import Pyramid
from tests.tools.tracked import tracked

EXAMPLE = torch.zeros(2, 3, 32, 32)
EIGHT = torch.zeros(2, 3, 8, 8)


def resnet(method: str = "auglocal", depth: int = 14, **options: Any) -> LocalGraphModule:
    few = {"modules": 3} if depth == 8 and method in ("gn-dgl", "infopro", "mlaan", "predsim") else {}
    return localize(cifar_resnet(depth), method, **{"d": 2, "example_inputs": EXAMPLE, "seed": 0, **few, **options})


def nesterov(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)


def dry_run(local: LocalGraphModule, **settings: Any) -> DryRun:
    twin = meta_copy(local)
    assert isinstance(twin, LocalGraphModule)
    return DryRun(twin, StepSettings(**settings), torch.device("cpu"))


METHODS = ["auglocal", "checkpoint", "gn-dgl", "infopro", "mlaan", "predsim"]


# Against other counts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_says_what_a_counted_step_takes(method: str) -> None:
    local = resnet(method, depth=8)
    assert measure(local, 48, optimizer=nesterov).peak == peak_step_bytes(local, 48)


def test_agrees_with_mem_tracker() -> None:
    local = resnet(depth=8)
    assert measure(local, 64).peak == pytest.approx(tracked(local, 64), rel=0.01)


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
@pytest.mark.parametrize("batch", [2, 8192])
def test_optimizers(optimizer: str, batch: int) -> None:
    """At batch 2 the update sets the peak, at batch 4096 the loss."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 500), nn.ReLU(), nn.Linear(500, 10))
    local = localize(model, "bp", example_inputs=EXAMPLE)
    made = Recipe(optimizer=optimizer).build_optimizer
    found = measure(local, batch, optimizer=optimizer)
    # Adam's counts of steps are tensors of one number.
    assert found.peak == pytest.approx(peak_step_bytes(local, batch, optimizer=made), abs=100)
    assert (found.binding is None) == (batch == 2)
    moments = {"sgd": 1, "adam": 2, "adamw": 2}[optimizer]
    assert found.optimizer_state == pytest.approx(moments * found.parameters, abs=100)
    assert found.optimizer == optimizer


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("step", ["batch", "module"])
def test_updates_of_a_network_of_many_layers(kind: str, step: Any) -> None:
    """What is said of pairs of neighbours is what an update of all parameters takes."""
    local = resnet(depth=14, modules=3)
    short = measure(local, 2, optimizer=kind, step=step)
    whole = measure(local, 2, optimizer=lambda p: Recipe(optimizer=kind).build_optimizer(p), step=step)
    assert dataclasses.replace(short, optimizer="") == dataclasses.replace(whole, optimizer="")


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_optimizers_on_gpus_update_all_parameters_in_one_go(kind: str) -> None:
    """Which takes a copy of them all; on a CPU the same is had by asking for it."""
    local = localize(nn.Sequential(nn.Flatten(), *[nn.Linear(192, 192) for _ in range(15)]), "bp", example_inputs=EIGHT)

    def asked(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        made = Recipe(optimizer=kind).build_optimizer(parameters)
        for group in made.param_groups:
            group["foreach"] = True
        return made

    apart = measure(local, 2, optimizer=kind)
    twin = meta_copy(local)
    assert isinstance(twin, LocalGraphModule)
    gpu = forecast(DryRun(twin, StepSettings(optimizer=kind), torch.device("cuda")), 2)
    assert gpu.peak == measure(local, 2, optimizer=asked).peak
    assert gpu.peak == pytest.approx(peak_step_bytes(local, 2, image_shape=(3, 8, 8), optimizer=asked), abs=100)
    assert gpu.peak - apart.peak > 0.5 * gpu.parameters


def test_fused_optimizers_take_nothing() -> None:
    local = localize(nn.Sequential(nn.Flatten(), *[nn.Linear(192, 192) for _ in range(15)]), "bp", example_inputs=EIGHT)
    fused = measure(local, 2, optimizer=lambda p: torch.optim.AdamW(p, fused=True))
    assert fused.update is not None
    assert fused.update.live == pytest.approx(fused.resident + fused.gradients, abs=100)


def test_residents_by_hand() -> None:
    local = resnet(depth=8)
    found = measure(local, 16)
    sizes = [4 * p.numel() for p in local.parameters()]
    assert found.parameters == found.gradients == found.optimizer_state == sum(sizes)
    assert found.buffers == sum(b.numel() * b.element_size() for b in local.buffers())
    assert found.batch == 16 * (3 * 32 * 32 * 4 + 8)
    assert found.resident == found.parameters + found.buffers + found.optimizer_state + found.batch
    frozen = resnet(depth=8)
    frozen.primary.requires_grad_(False)
    found = measure(frozen, 16)
    trained = sum(4 * p.numel() for p in frozen.parameters() if p.requires_grad)
    assert (found.parameters, found.gradients, found.optimizer_state) == (sum(sizes), trained, trained)


# The batch size -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["auglocal", "checkpoint", pytest.param("mlaan", marks=pytest.mark.slow), "predsim"])
def test_a_curve_through_small_batches_is_a_run_at_any_batch(method: str) -> None:
    """Every operation's live bytes, bit for bit; a line, but for similarities of all pairs of samples."""
    run = dry_run(resnet(method, depth=8))
    order = 3 if method == "predsim" else 2
    curve = Curve(*(run.record(2 * (i + 1)) for i in range(order)))
    for batch in (5, 100):
        assert curve.peak(batch) == run.record(batch).peak()
    if method == "predsim":
        line = Curve(run.record(2), run.record(4))
        assert line.peak(10**6) < curve.peak(10**6) == run.record(10**6).peak()


@pytest.mark.parametrize(
    ("method", "budget", "limit"),
    [("auglocal", "200MB", 2 * 10**8), ("checkpoint", "1GiB", 2**30), ("predsim", "90TB", 9 * 10**13)],
)
def test_the_largest_batch_fits_and_the_next_does_not(method: str, budget: str, limit: int) -> None:
    run = dry_run(resnet(method, depth=8))
    largest = forecast(run, 8).largest_batch(budget)
    assert forecast(run, 8).largest_batch(limit) == largest
    assert run.record(largest).peak() <= limit < run.record(largest + 1).peak()


def test_a_budget_that_nothing_fits() -> None:
    found = measure(resnet(depth=8), 8)
    assert found.largest_batch(found.parameters) == 0
    with pytest.raises(LocalizeError, match="a size of memory must be a number with or without a unit"):
        found.largest_batch("8 apples")


class Branching(nn.Module):
    """Runs other operations for large batches, out of the tracer's sight."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)))
        self.twice = Twice()
        self.classifier = nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.twice(self.layers(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.sigmoid()
        for _ in range(len(x) // 50):
            x = x.sigmoid()
        return x


def test_a_model_that_branches_on_the_batch_size() -> None:
    local = localize(Branching(), "bp", example_inputs=torch.zeros(2, 3, 8, 8))
    run = dry_run(local)
    with pytest.raises(PlanError, match="depends on the batch size"):
        Curve(run.record(40), run.record(80))
    largest = measure(local, 40).largest_batch("2MB")
    assert largest > 100
    assert run.record(largest).peak() <= 2_000_000 < run.record(largest + 1).peak()


# Local modules --------------------------------------------------------------------------------------------------------


def test_peaks_module_by_module() -> None:
    """Counted anew by stopping a loop of one's own behind each module."""
    local = resnet(depth=8)
    found = measure(local, 32)
    assert [m.name for m in found.modules] == [m.name for m in local.plan.modules]
    assert found.peak == max(m.peak for m in found.modules)

    def until(last: int) -> int:
        def step(module: Any, x: torch.Tensor, y: torch.Tensor) -> None:
            for index, output in enumerate(module.steps(x, y)):
                output.loss.backward()
                if index == last:
                    return

        return peak_step_bytes(local, 32, step=step, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, foreach=False))

    # Without momentum: the modules that a shorter loop leaves out would have none either.
    plain = measure(local, 32, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, foreach=False))
    highest = 0
    for index, module in enumerate(plain.modules):
        highest = max(highest, module.peak)
        assert until(index) == highest
    assert found.binding is not None
    assert found.binding.peak == found.peak


class Narrow(nn.Module):
    """One wide layer among narrow ones: where the peak is needs no telling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Sequential(nn.Conv2d(4, 96, 3, padding=1), nn.Sigmoid(), nn.Conv2d(96, 4, 3, padding=1))
        self.third = nn.Conv2d(4, 4, 3, padding=1)
        self.classifier = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.third(self.second(self.first(x).relu()).relu()).relu()
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_the_binding_module_and_operation() -> None:
    local = localize(Narrow(), "dgl", modules=[1, 2, 1], example_inputs=torch.zeros(2, 3, 16, 16), seed=0)
    found = measure(local, 64)
    assert found.binding is not None
    assert found.binding.index == 1
    assert found.binding.name == "second.0..second.2"
    # The gradient of the wide tensor, beside what the forward kept.
    assert found.at.phase == "backward"
    assert found.at.shape == (64, 96, 16, 16)
    assert found.at.path in ("primary.second.1", "primary.second.2")
    wide = 64 * 96 * 16 * 16 * 4
    assert wide <= found.binding.kept < 2 * wide
    assert found.peak >= 3 * wide
    assert all(module.peak < 2 * wide for module in found.modules if module.index != 1)
    text = str(found)
    assert "in module 1 (second.0..second.2): backward" in text
    (marked,) = [line for line in text.splitlines() if line.startswith("> ")]
    assert marked.startswith("> 1 second.0..second.2")


def test_paths_in_auxiliary_networks_and_recomputed_layers() -> None:
    found = measure(localize(cifar_resnet(8), d=3, max_cut=1, example_inputs=EXAMPLE, seed=0), 16)
    assert found.modules[0].at.path.startswith("module_0.auxiliary.")
    run = dry_run(resnet("checkpoint", depth=8))
    recording = run.record(16)
    places = {recording.timeline.moment(event, 0).path for event in recording.events if event.phase == "backward"}
    assert any(place.startswith("primary.layer2") for place in places)


# Settings -------------------------------------------------------------------------------------------------------------


def test_dtype_is_that_of_parameters_and_images() -> None:
    local = resnet(depth=8)
    full, half = measure(local, 32), measure(local, 32, dtype="bfloat16")
    assert half.parameters == full.parameters // 2
    assert half.batch == 32 * (3 * 32 * 32 * 2 + 8)
    assert 0.5 * full.peak <= half.peak < 0.52 * full.peak
    assert half.dtype == "bfloat16"
    assert all(p.dtype == torch.float32 for p in local.parameters())
    assert measure(local, 32, dtype=torch.float32) == full
    assert measure(local.to(torch.bfloat16), 32) == half == local.plan.memory(32, rivals=False)


def test_amp_is_that_of_forward_passes() -> None:
    local = resnet(depth=8)
    full, amp = measure(local, 256), measure(local, 256, amp="bfloat16")
    assert amp.parameters == full.parameters
    assert amp.gradients == full.gradients
    assert 0.45 * full.peak < amp.peak < 0.8 * full.peak

    def step(module: Any, x: torch.Tensor, y: torch.Tensor) -> None:
        steps = module.steps(x, y)
        while True:
            with torch.autocast("cpu", torch.bfloat16):
                output = next(steps, None)
            if output is None:
                return
            output.loss.backward()

    assert amp.peak == pytest.approx(peak_step_bytes(local, 256, step=step), rel=0.002)


@pytest.mark.parametrize("method", ["auglocal", "mlaan"])
def test_updates_module_by_module_free_gradients(method: str) -> None:
    local = resnet(method, depth=8, modules=3)
    together, apart = measure(local, 2), measure(local, 2, step="module")
    assert apart.update is None
    assert together.update is not None
    assert apart.optimizer_state == together.optimizer_state
    assert apart.parameters == together.parameters
    count = range(len(local.plan.modules))
    owned = [{id(p): 4 * p.numel() for p in local.parameters_of(k)} for k in count]
    assert together.gradients == sum({key: size for group in owned for key, size in group.items()}.values())
    # What no later module reaches is updated at once.
    held = [
        {key: size for group in owned[: k + 1] for key, size in group.items()}.items()
        - {
            (key, size)
            for j, group in enumerate(owned[:k])
            for key, size in group.items()
            if all(key not in later for later in owned[j + 1 :])
        }
        for k in count
    ]
    assert apart.gradients == max(sum(size for _, size in items) for items in held)
    if method == "auglocal":
        assert apart.gradients == max(sum(group.values()) for group in owned)
    assert apart.gradients < together.gradients
    assert apart.modules[-1].peak < together.modules[-1].peak
    assert apart.peak <= together.peak


@pytest.mark.parametrize("method", ["auglocal", pytest.param("mlaan", marks=pytest.mark.slow)])
def test_updates_module_by_module_counted(method: str) -> None:
    """A loop that updates so, counted."""
    local = resnet(method, depth=8, modules=3)
    updates: list[torch.optim.Optimizer] = []

    def step(module: Any, x: torch.Tensor, y: torch.Tensor) -> None:
        count = range(len(module.plan.modules))
        if not updates:
            last = {p: k for k in count for p in module.parameters_of(k)}
            updates.extend(nesterov([p for p, its in last.items() if its == k]) for k in count)
        for output, update in zip(module.steps(x, y), updates, strict=True):
            output.loss.backward()
            update.step()
            update.zero_grad()

    def nothing(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD([nn.Parameter(torch.zeros(0))])

    for batch in (2, 64):
        updates.clear()
        counted = peak_step_bytes(local, batch, optimizer=nothing, step=step)
        assert measure(local, batch, optimizer=nesterov, step="module").peak == counted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int64"}, "dtype must be a floating-point type, got 'int64'"),
        ({"amp": "half a byte"}, "amp must be a floating-point type, got 'half a byte'"),
        ({"step": "epoch"}, "step must be 'batch' or 'module', got 'epoch'"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        resnet(depth=8).plan.memory(8, **settings)


def test_further_refusals() -> None:
    plan = resnet(depth=8).plan
    with pytest.raises(OptionError, match="unknown optimizer 'lion'"):
        plan.memory(8, optimizer="lion")
    for size in (0, -1, 2.5, True, "many"):
        with pytest.raises(PlanError, match="batch_size must be an integer >= 1, got"):
            plan.memory(size)  # type: ignore[arg-type]


def test_other_targets() -> None:
    local = localize(cifar_resnet(8), d=2, criterion=nn.BCEWithLogitsLoss(), example_inputs=EXAMPLE, seed=0)
    known = measure(local, 8)
    assert known.batch == 8 * (3 * 32 * 32 + 10) * 4

    def own_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(logits, target)

    own = localize(
        cifar_resnet(8),
        d=2,
        criterion=own_loss,
        example_inputs=EXAMPLE,
        seed=0,
    )
    with pytest.raises(PlanError, match=r"cannot be forecast.*target of shape \(8,\).*give target="):
        measure(own, 8)
    assert measure(own, 8, target=lambda batch: torch.zeros(batch, 10)).peak == known.peak


def test_a_loss_that_looks_at_values() -> None:
    def hardest(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        losses = F.cross_entropy(logits, target, reduction="none")
        return losses[losses > losses.mean()].mean()

    local = localize(cifar_resnet(8), "bp", criterion=hardest, example_inputs=EXAMPLE)
    with pytest.raises(PlanError, match=r"depends on the values of a tensor .* and nothing is computed"):
        local.plan.memory(8, target=lambda batch: torch.zeros(batch, dtype=torch.int64))


def test_a_backbone_with_an_output_criterion() -> None:
    def spread(levels: Any, target: Any) -> torch.Tensor:
        losses = [level.square().mean() for level in levels.values()]
        return torch.stack(losses).sum() + 0.0 * torch.sum(target)

    options: dict[str, Any] = {"outputs": 5, "criterion": nn.BCEWithLogitsLoss(), "output_criterion": spread}
    local = localize(Pyramid(), d=2, example_inputs=torch.zeros(2, 3, 32, 32), seed=0, **options)
    found = local.plan.memory(8)
    assert [rival.method for rival in found.rivals] == ["bp", "checkpoint"]
    head = nn.Conv2d(6, 2, 1)
    closing = localize(
        Pyramid(),
        d=2,
        example_inputs=torch.zeros(2, 3, 32, 32),
        **{
            **options,
            "output_criterion": lambda levels, _: sum(head(level).square().mean() for level in levels.values()),
        },
    )
    with pytest.raises(PlanError, match=r"nn\.Module"):
        closing.plan.memory(8)
    assert head.weight.grad is None


# The plan -------------------------------------------------------------------------------------------------------------


def test_rivals_are_the_users_model_by_backpropagation() -> None:
    for method in ("auglocal", "gn-dgl"):
        found = resnet(method, depth=8).plan.memory(32)
        assert {rival.method: rival.peak for rival in found.rivals} == {
            name: measure(resnet(name, depth=8), 32).peak for name in ("bp", "checkpoint")
        }
        assert resnet(method, depth=8).plan.memory(32, rivals=False).rivals == ()


def test_a_plan_from_json_knows_no_model() -> None:
    plan = resnet(depth=8).plan
    plan.memory(8, rivals=False)
    for other in (Plan.from_json(plan.to_json()), pickle.loads(pickle.dumps(plan)), copy.deepcopy(plan)):
        assert other == plan
        with pytest.raises(PlanError, match=r"has no model to forecast.*localize\(model, \.\.\.\)\.plan\.memory"):
            other.memory(8)


def test_forecasts_are_kept_as_long_as_the_model_stays_as_it_is() -> None:
    local = resnet(depth=8)
    found = local.plan.memory(8, rivals=False)
    assert local.plan.memory(8, rivals=False) is found
    assert local.plan.memory(8, rivals=False, amp="bfloat16") is not found
    assert local.plan.memory(16, rivals=False) == measure(local, 16)
    local.primary.requires_grad_(False)
    assert local.plan.memory(8, rivals=False).gradients < found.gradients
    assert copy.deepcopy(local).plan.memory(8, rivals=False).peak > 0


def test_the_model_dies_with_its_plan() -> None:
    model = cifar_resnet(8)
    gone = weakref.ref(model)
    plan = localize(model, d=2, example_inputs=EXAMPLE).plan
    del model
    gc.collect()
    assert plan.memory(8).largest_batch("100MB") > 8
    del plan
    gc.collect()
    assert gone() is None


def test_everything_is_left_alone(resnet: CifarResNet) -> None:
    criterion = nn.CrossEntropyLoss(weight=torch.rand(10))
    local = localize(resnet.eval(), d=2, criterion=criterion, example_inputs=EXAMPLE, seed=0)
    before = {name: value.clone() for name, value in local.state_dict().items()}
    identities = {name: id(value) for name, value in (*local.named_parameters(), *local.named_buffers())}
    modes = [module.training for module in local.modules()]
    state = torch.get_rng_state()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        quiet = measure(local, 8)
        local.plan.memory(8)
    assert measure(local, 8) == quiet
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in local.modules()] == modes
    assert {name: id(v) for name, v in (*local.named_parameters(), *local.named_buffers())} == identities
    assert all(torch.equal(value, before[name]) for name, value in local.state_dict().items())
    assert all(p.grad is None for p in local.parameters())
    assert not any(module._forward_hooks for module in local.modules())
    assert gc.isenabled()


def test_a_model_without_values_takes_what_one_with_values_takes() -> None:
    with torch.device("meta"):
        model = cifar_resnet(8)
    local = localize(model, d=2, example_inputs=torch.empty(2, 3, 32, 32, device="meta"), seed=0)
    assert measure(local, 16) == measure(resnet(depth=8), 16)


# Form -----------------------------------------------------------------------------------------------------------------

TABLE = """\
step      CifarResNet by auglocal, 256 x 3x32x32, float32, bfloat16 autocast, sgd, updated module by
          module
peak      82.3 MB in module 1 (layer1..layer3): backward threshold_backward 256x64x8x8 in
          layer3.0.relu
resident  4.36 MB (parameters 604 kB, buffers 5.11 kB, optimizer state 604 kB, batch 3.15 MB),
          gradients up to 310 kB
beside    backpropagation 91.5 MB (peak: 90 % of that), with checkpointing 54.6 MB (peak: 151 % of
          that)

module                 peak     kept  at its peak
------------------  -------  -------  --------------------------------------------------------------
  0 conv1           56.6 MB  50.0 MB  backward add 256x32x16x16 in auxiliary.block_1.layer3_0_dow...
> 1 layer1..layer3  82.3 MB  65.2 MB  backward threshold_backward 256x64x8x8 in layer3.0.relu"""


def test_prints_as_a_table_of_at_most_100_columns() -> None:
    local = localize(cifar_resnet(8), d=3, max_cut=1, example_inputs=EXAMPLE, seed=0)
    text = str(local.plan.memory(256, amp="bfloat16", step="module"))
    assert text == TABLE
    assert max(map(len, text.splitlines())) <= 100


def test_to_dict_is_fit_for_json() -> None:
    found = resnet(depth=8).plan.memory(16)
    data = json.loads(json.dumps(found.to_dict()))
    assert data["peak"] == found.peak
    assert data["binding"] == (found.binding.index if found.binding else None)
    assert data["rivals"] == {rival.method: rival.peak for rival in found.rivals}
    assert [module["peak"] for module in data["modules"]] == [module.peak for module in found.modules]
    assert isinstance(found, MemoryForecast)
