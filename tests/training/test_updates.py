"""How a run's gradients become updates: micro-batches, clipping, averages, module by module; and resuming all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from localize import LocalGraphModule, localize
from localize.cli.main import main
from localize.models import cifar_resnet
from localize.training.averaging import Average
from localize.training.checkpoint import CheckpointError
from localize.training.data.batches import Data, load_data
from localize.training.events import Interrupted
from localize.training.recipe import ADDED_SETTINGS, Recipe
from localize.training.trainer import TrainingResult, evaluate, train
from localize.training.updates import Updates, micro_batches
from tests.tools.rules import images, small
from tests.tools.training import assert_same_weights, interrupt_after, localized, without_times

STEPS = 4  # 60 images in batches of 15


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits", limit=60, image_size=8)


def recipe(**settings: Any) -> Recipe:
    return Recipe(**{"epochs": 2, "batch_size": 16, "lr": 0.05, **settings})


def trained(data: Data, folder: Path, **settings: Any) -> tuple[LocalGraphModule, TrainingResult]:
    local = localized()
    return local, train(local, data, recipe(**settings), folder, seed=5)


def differ(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return any(not torch.equal(left[name], right[name]) for name in left)


# Module by module


@pytest.mark.parametrize(
    "settings",
    [{}, {"optimizer": "adamw", "lr": 0.01}, {"clip": 0.1, "clip_by": "module"}, {"accumulate": 2}, {"ema": 0.5}],
    ids=lambda settings: "-".join(settings) or "sgd",
)
def test_module_by_module_gives_the_same_run(data: Data, tmp_path: Path, settings: dict[str, Any]) -> None:
    whole, result = trained(data, tmp_path / "batch", **settings)
    parts, other = trained(data, tmp_path / "module", step="module", **settings)
    assert_same_weights(whole, parts)
    assert without_times(result) == without_times(other)


def test_a_copy_that_follows_a_later_layer_waits_for_it() -> None:
    networks = [small("mlaan"), small("mlaan")]
    for local, step in zip(networks, ("batch", "module"), strict=True):
        updates = Updates(local, recipe(step=step))
        for seed in range(3):
            updates.set_lr(0.1)
            for out in local.steps(*images(seed=seed)):
                out.loss.backward()
                updates.after_module(out.name)
            updates.after_batch()
    assert_same_weights(*networks)


def test_gradients_of_one_module_are_alive_at_a_time() -> None:
    local = localize(cifar_resnet(8, width=4), "dgl", seed=0)
    updates = Updates(local, recipe(step="module"))
    left = []
    for out in local.steps(torch.randn(4, 3, 32, 32), torch.arange(4)):
        out.loss.backward()
        updates.after_module(out.name)
        left.append(sum(p.grad is not None for p in local.parameters()))
    assert left == [0] * len(local.plan.modules)


# Micro-batches


@pytest.mark.parametrize(("count", "parts", "sizes"), [(15, 4, [4, 4, 4, 3]), (3, 8, [1, 1, 1]), (6, 1, [6])])
def test_micro_batches_cover_the_batch(count: int, parts: int, sizes: list[int]) -> None:
    x, y = torch.arange(count), torch.arange(count)
    found = list(micro_batches(x, y, parts))
    assert [len(some) for some, _, _ in found] == sizes
    assert torch.equal(torch.cat([some for some, _, _ in found]), x)
    assert all(torch.equal(some, labels) for some, labels, _ in found)
    assert sum(share for *_, share in found) == pytest.approx(1)


def without_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 8, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip


def test_the_sum_over_micro_batches_is_the_mean_over_the_batch(data: Data, tmp_path: Path) -> None:
    """Up to rounding, in a network where samples do not depend on each other."""
    found = []
    for accumulate in (1, 4):
        torch.manual_seed(1)
        local = localize(
            without_norm(), "auglocal", d=1, head_norm=False, example_inputs=torch.zeros(2, 3, 8, 8), seed=1
        )
        result = train(local, data, recipe(accumulate=accumulate), tmp_path / str(accumulate), seed=5)
        found.append((local.state_dict(), result.history[-1]))
    for name, value in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], value, rtol=1e-4, atol=1e-5)
    (_, whole), (_, parts) = found
    assert parts.train_loss == pytest.approx(whole.train_loss, rel=1e-4)
    assert parts.train_accuracy == whole.train_accuracy
    assert parts.module_losses == pytest.approx(dict(whole.module_losses), rel=1e-4)


# Clipping


@pytest.mark.parametrize("by", ["global", "module"])
def test_clipping_bounds_the_update(by: str) -> None:
    """Without momentum a step is the learning rate times a gradient, whose norm is the one asked for."""
    local = small("auglocal")
    before = {name: p.detach().clone() for name, p in local.named_parameters()}
    names = {id(p): name for name, p in local.named_parameters()}
    updates = Updates(local, recipe(clip=0.01, clip_by=by, momentum=0, weight_decay=0))
    updates.set_lr(1.0)
    for out in local.steps(*images()):
        out.loss.backward()
        updates.after_module(out.name)
    updates.after_batch()
    modules = [local.parameters_of(k) for k in range(len(local.plan.modules))]
    for group in modules if by == "module" else [list(local.parameters())]:
        moved = torch.stack([(p.detach() - before[names[id(p)]]).square().sum() for p in group]).sum().sqrt()
        torch.testing.assert_close(moved, torch.tensor(0.01), rtol=1e-3, atol=0)


def test_clipping_changes_a_run(data: Data, tmp_path: Path) -> None:
    plain, _ = trained(data, tmp_path / "plain")
    clipped, _ = trained(data, tmp_path / "clipped", clip=0.1)
    by_module, _ = trained(data, tmp_path / "module", clip=0.1, clip_by="module")
    assert differ(plain, clipped)
    assert differ(clipped, by_module)


# Averages


def test_average_of_a_network() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model[1].weight = nn.Parameter(model[0].bias.detach().clone())
    average = Average(model, 0.75)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(step)
            model(torch.randn(4, 2))
        average.update()
        for name, value in model.state_dict().items():
            kept = expected[name]
            expected[name] = kept.lerp(value, 0.25) if kept.is_floating_point() else value.clone()
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with average.in_place():
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    assert int(expected["1.num_batches_tracked"]) == 3


def test_tied_weights_are_averaged_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    average = Average(model, 0.5)
    start = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(1)
    average.update()
    with average.in_place():
        assert model[1].weight is model[0].weight
        torch.testing.assert_close(model[1].weight.detach(), start + 0.5)


def test_infinite_constants_stay() -> None:
    model = nn.Linear(2, 2)
    mask = torch.tensor([0.0, -torch.inf])
    model.register_buffer("mask", mask.clone())
    average = Average(model, 0.5)
    average.update()
    with average.in_place():
        assert torch.equal(model.get_buffer("mask"), mask)


def test_own_weights_come_back_after_an_error() -> None:
    model = nn.Linear(2, 2)
    average = Average(model, 0.5)
    with torch.no_grad():
        model.weight.zero_()

    def fail() -> None:
        with average.in_place():
            assert model.weight.any()
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert not model.weight.any()


def test_the_average_is_evaluated_and_saved(data: Data, tmp_path: Path) -> None:
    plain, _ = trained(data, tmp_path / "plain")
    local, result = trained(data, tmp_path / "ema", ema=0.9)
    assert_same_weights(plain, local)
    saved = load_file(tmp_path / "ema" / "model.safetensors")
    assert not torch.equal(saved["0.0.weight"], local.primary.state_dict()["0.0.weight"])
    model = localized().primary
    model.load_state_dict(saved)
    loss, accuracy = evaluate(model, data, batch_size=16)
    assert (result.history[-1].test_loss, result.history[-1].test_accuracy) == (loss, accuracy)


# Resuming

ALL = {"accumulate": 2, "clip": 0.5, "clip_by": "module", "ema": 0.9, "step": "module"}


@pytest.mark.parametrize(
    "settings", [{"ema": 0.9}, {"step": "module", "optimizer": "adamw"}, ALL], ids=["ema", "module", "all"]
)
@pytest.mark.parametrize("steps", [2, STEPS + 1])
def test_resuming_is_bit_identical(data: Data, tmp_path: Path, settings: dict[str, Any], steps: int) -> None:
    straight, whole = trained(data, tmp_path / "straight", **settings)
    with pytest.raises(Interrupted):
        train(localized(), data, recipe(**settings), tmp_path / "run", seed=5, on_event=interrupt_after(steps))
    resumed = localized()
    finished = train(resumed, data, recipe(**settings), tmp_path / "run", seed=5, resume=True)
    assert_same_weights(straight, resumed)
    assert without_times(finished) == without_times(whole)
    saved = [load_file(tmp_path / folder / "model.safetensors") for folder in ("straight", "run")]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


def test_a_checkpoint_of_a_version_without_these_settings(data: Data, tmp_path: Path) -> None:
    straight, _ = trained(data, tmp_path / "straight")
    with pytest.raises(Interrupted):
        train(localized(), data, recipe(), tmp_path / "run", seed=5, on_event=interrupt_after(2))
    content = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    content["settings"] = {key: value for key, value in content["settings"].items() if key not in ADDED_SETTINGS}
    del content["average"]
    torch.save(content, tmp_path / "run/checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"ema is None there and 0\.9 here"):
        train(localized(), data, recipe(ema=0.9), tmp_path / "run", seed=5, resume=True)
    resumed = localized()
    train(resumed, data, recipe(), tmp_path / "run", seed=5, resume=True)
    assert_same_weights(straight, resumed)


def test_flags_of_the_command(tmp_path: Path) -> None:
    words = [
        "train",
        "--model",
        "localize:cifar_resnet8",
        "--data",
        "digits",
        "--limit",
        "40",
        "-d",
        "2",
        "--epochs",
        "1",
    ]
    flags = ["--accumulate", "2", "--clip", "0.5", "--clip-by", "module", "--ema", "0.9", "--step", "module"]
    with pytest.raises(SystemExit) as caught:
        main([*words, *flags, "--batch-size", "20", "--out", str(tmp_path / "run")])
    assert caught.value.code == 0
    saved = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    assert {name: saved["settings"][name] for name in ADDED_SETTINGS} == ALL
    assert len(json.loads((tmp_path / "run/plan.json").read_text())["modules"]) == len(saved["optimizer"])
    with pytest.raises(SystemExit) as caught:
        main([*words, "--step", "module", "--clip", "1", "--out", str(tmp_path / "other")])
    assert caught.value.code == 2
