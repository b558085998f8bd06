"""The memory planner: what is done to keep to a budget, what it costs, and what is said where nothing suffices."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from localize import BudgetError, LocalGraphModule, LocalizeError, MemoryBudget, MethodError, Plan, localize
from localize.cli.main import main
from localize.compiler.emit import emit
from localize.compiler.planning import with_recompute
from localize.memory.peak import peak_step_bytes
from localize.models import cifar_resnet
from tests.models.model_file import MODEL_FILE

BATCH = 256
X = torch.empty(2, 3, 32, 32)


def resnet(depth: int = 20, method: str = "auglocal", **options: Any) -> LocalGraphModule:
    torch.manual_seed(0)
    return localize(cifar_resnet(depth), method, seed=0, example_inputs=X, **options)


@cache
def plain_peak(d: int = 4) -> int:
    return peak_step_bytes(resnet(d=d), BATCH)


@cache
def lean() -> LocalGraphModule:
    return resnet(memory_budget=int(0.7 * plain_peak()), batch_size=BATCH)


def test_recomputes_where_needed_and_no_more() -> None:
    budget, local = int(0.7 * plain_peak()), lean()
    record = local.plan.budget
    assert record is not None
    assert (record.size, record.batch_size, record.before) == (budget, BATCH, plain_peak())
    assert peak_step_bytes(local, BATCH) == record.peak <= budget
    ways = [module.recompute for module in local.plan.modules]
    # The first modules, at full resolution, are what is over the budget.
    assert any(ways)
    assert not all(ways)
    for k in (0, max(k for k, way in enumerate(ways) if way)):
        one_less = [() if j == k else own for j, own in enumerate(ways)]
        assert _peak_with(one_less) > budget, f"module {k} recomputes without need"


def _peak_with(ways: list[Any]) -> int:
    local = resnet()
    plan = with_recompute(local.plan, ways)
    return peak_step_bytes(emit(plan, local.compiled.over(cifar_resnet(20), None)), BATCH)


def test_losses_and_gradients_are_the_same() -> None:
    x, y = torch.randn(2, 3, 32, 32), torch.tensor([1, 7])
    found = []
    for local in (resnet(), copy.deepcopy(lean())):
        losses = []
        for out in local.steps(x, y):
            out.loss.backward()
            losses.append(out.loss.detach())
        found.append([*losses, *(p.grad for p in local.parameters())])
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_budget_that_is_kept_to_changes_nothing() -> None:
    local = resnet(memory_budget="1TB", batch_size=BATCH)
    assert local.plan.modules == resnet().plan.modules
    assert local.plan.budget is not None
    assert local.plan.budget.choices == ()
    assert local.plan.budget.before == local.plan.budget.peak == plain_peak()


def test_the_plan_says_what_was_done_and_what_it_costs() -> None:
    plan = lean().plan
    assert Plan.from_json(plan.to_json()) == plan
    text = str(plan)
    assert "at batch 256, within" in text
    assert plan.budget is not None
    assert all(choice in text for choice in plan.budget.choices)
    macs = 0.0
    for module in plan.modules:
        macs += sum(plan.layers[i].macs for i in module.layers) if "layers" in module.recompute else 0
        macs += sum(network.macs for network in module.networks) if "blocks" in module.recompute else 0
    said = sum(float(choice.split(": ")[1].split(" %")[0]) for choice in plan.budget.choices if "%" in choice)
    assert said == pytest.approx(100 * macs / (3 * (plan.macs + plan.auxiliary_macs)), abs=0.2)


def test_merging_fills_the_budget_with_fewer_modules() -> None:
    budget = MemoryBudget(int(1.5 * plain_peak()), BATCH, may=("merge",))
    local = resnet(memory_budget=budget)
    assert len(local.plan.modules) < len(resnet().plan.modules)
    assert [i for module in local.plan.modules for i in module.layers] == list(range(len(local.plan.layers)))
    assert peak_step_bytes(local, BATCH) <= budget.bytes
    assert local.plan.budget is not None
    assert "local modules instead of" in local.plan.budget.choices[0]


def test_updating_module_by_module_is_said() -> None:
    # Parameters weigh most here: nothing else helps.
    model = nn.Sequential(nn.Flatten(), *(nn.Linear(512, 512) for _ in range(6)), nn.Linear(512, 10))
    x = torch.empty(2, 512)
    plain = localize(model, d=2, example_inputs=x).plan
    least = plain.memory(2, step="module", rivals=False).peak
    assert least < plain.memory(2, rivals=False).peak
    with pytest.raises(BudgetError, match=r"may=\('recompute', 'step'\)"):
        localize(model, d=2, example_inputs=x, memory_budget=least, batch_size=2)
    plan = localize(model, d=2, example_inputs=x, memory_budget=MemoryBudget(least, 2, may=("recompute", "step"))).plan
    assert plan.budget is not None
    assert plan.budget.step == "module"
    assert "step='module', by the training loop" in str(plan)


def test_less_depth_where_allowed() -> None:
    deep, shallow = (resnet(d=d).plan.memory(BATCH, rivals=False).peak for d in (5, 3))
    assert shallow < deep
    budget = MemoryBudget((deep + shallow) // 2, BATCH, may=("depth",))
    plan = resnet(d=5, memory_budget=budget).plan
    assert plan.options["d"] < 5
    assert plan.budget is not None
    assert any("instead of 5" in choice for choice in plan.budget.choices)


@pytest.mark.slow
def test_what_cannot_be_kept_to_is_refused_with_figures() -> None:
    with pytest.raises(BudgetError) as caught:
        resnet(8, "dgl", memory_budget="20MB", batch_size=BATCH)
    message = str(caught.value)
    assert "a step of 256 samples takes" in message
    assert "more than the memory budget of 20.0 MB" in message
    assert "binds: backward" in message
    # The batch that is offered keeps to the budget.
    batch = int(message.split("a batch of at most ")[1].split(";", maxsplit=1)[0])
    plan = resnet(8, "dgl", memory_budget="20MB", batch_size=batch).plan
    assert plan.budget is not None
    assert plan.budget.peak <= 20e6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_budget": "1GB"}, "memory_budget needs a batch size"),
        ({"batch_size": 8}, "batch_size has no effect without memory_budget"),
        ({"memory_budget": "much", "batch_size": 8}, "with or without a unit, got 'much'"),
        ({"memory_budget": "1GB", "batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"memory_budget": "1GB", "batch_size": True}, "batch_size must be an integer >= 1, got True"),
    ],
)
def test_wrong_values_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LocalizeError, match=message):
        resnet(**options)


def test_unknown_means_are_named() -> None:
    with pytest.raises(MethodError, match=r"may must hold means among .*'step', 'depth', 'merge', got 'magic'"):
        MemoryBudget("1GB", 8, may=("magic",))  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="batch_size=8, and the memory budget has 16"):
        resnet(memory_budget=MemoryBudget("1GB", 16), batch_size=8)


@pytest.mark.parametrize(
    "method", ["bp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mlaan", "infopro", "gn-dgl"))]
)
def test_every_method_keeps_to_a_budget(method: str) -> None:
    plain = resnet(8, method).plan.memory(BATCH, rivals=False).peak
    local = resnet(8, method, memory_budget=plain, batch_size=BATCH)
    assert local.plan.budget is not None
    assert local.plan.budget.choices == ()
    lean = resnet(8, method, recompute=True).plan.memory(BATCH, rivals=False).peak
    if lean < plain:
        assert resnet(8, method, memory_budget=lean, batch_size=BATCH).plan.memory(BATCH, rivals=False).peak <= lean


@pytest.mark.slow
def test_token_networks_keep_to_a_budget_too() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10, depth=4)
    x = torch.empty(2, 3, 64, 64)
    plain, lean = (
        localize(model, d=3, example_inputs=x, recompute=way).plan.memory(64, rivals=False).peak
        for way in (False, True)
    )
    assert lean < 0.95 * plain
    plan = localize(model, d=3, example_inputs=x, memory_budget=lean, batch_size=64).plan
    assert plan.memory(64, rivals=False).peak <= lean


TRAIN = ["train", "--model", "localize:cifar_resnet20", "--data", "digits", "--image-size", "32"]


@pytest.mark.slow
def test_the_command_line_keeps_to_a_budget(tmp_path: Path) -> None:
    budget = int(0.8 * resnet().plan.memory(64, rivals=False).peak)
    short = ["--limit", "64", "--epochs", "1", "--batch-size", "64", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        main([*TRAIN, "--memory-budget", str(budget), *short])
    assert not stop.value.code
    plan = Plan.from_json((tmp_path / "run" / "plan.json").read_text())
    assert plan.budget is not None
    assert (plan.budget.size, plan.budget.batch_size) == (budget, 64)
    assert plan.budget.peak <= budget < plan.budget.before
    assert any(module.recompute for module in plan.modules)


def test_the_command_line_refuses_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.py").write_text(MODEL_FILE)
    small = ["m.py:chain" if word == "localize:cifar_resnet20" else word for word in TRAIN]
    with pytest.raises(SystemExit) as stop:
        main([*small, "--method", "dgl", "--batch-size", "1024", "--memory-budget", "1MB", "--out", "run"])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: a step of 1024 samples takes")
    assert message.count("\n") == 1
    assert not Path("run").exists()
