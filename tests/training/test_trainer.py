"""The training loop: files, metrics, interruption, and resumption to the bit."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from localize import Plan, localize
from localize.models import cifar_resnet
from localize.training.checkpoint import CheckpointError
from localize.training.data.batches import Data, load_data
from localize.training.data.images import DataError
from localize.training.events import EpochDone, Event, Interrupted, Started, StepDone
from localize.training.recipe import Recipe
from localize.training.trainer import RUN_FILES, TrainingError, evaluate, train
from tests.models.dense_models import UNet
from tests.tools.training import (
    RECIPE,
    STEPS,
    assert_same_weights,
    interrupt_after,
    localized,
    with_dropout,
    without_times,
)


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits", limit=60, image_size=8)


# Resuming


@pytest.mark.parametrize(
    ("steps", "optimizer"),
    [
        (STEPS, "sgd"),
        (STEPS + 2, "adamw"),
        *(pytest.param(n, "sgd", marks=pytest.mark.slow) for n in (1, STEPS - 1, 3 * STEPS - 1)),
    ],
)
def test_interrupted_and_resumed_is_bit_identical(tmp_path: Path, data: Data, steps: int, optimizer: str) -> None:
    recipe = Recipe(epochs=3, batch_size=16, lr=0.05 if optimizer == "sgd" else 0.01, optimizer=optimizer)
    straight = localized()
    whole = train(straight, data, recipe, tmp_path / "straight", seed=5)

    with pytest.raises(Interrupted) as stop:
        train(localized(), data, recipe, tmp_path / "stopped", seed=5, on_event=interrupt_after(steps))
    assert (stop.value.position.epoch, stop.value.position.step) == divmod(steps, STEPS)
    assert stop.value.checkpoint == tmp_path / "stopped" / "checkpoint.pt"

    torch.manual_seed(77)  # whatever the new process did before
    resumed = localize(with_dropout(), "auglocal", d=2, example_inputs=torch.zeros(2, 3, 8, 8), seed=9)
    finished = train(resumed, data, recipe, tmp_path / "stopped", seed=5, resume=True)
    assert_same_weights(straight, resumed)
    assert without_times(finished) == without_times(whole)
    saved = [load_file(tmp_path / folder / "model.safetensors") for folder in ("straight", "stopped")]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


def test_dropout_matters_to_the_test_above(tmp_path: Path, data: Data) -> None:
    one, other = localized(), localized()
    train(one, data, RECIPE, tmp_path / "a", seed=5)
    train(other, data, RECIPE, tmp_path / "b", seed=6)
    assert not torch.equal(one.state_dict()["primary.0.0.weight"], other.state_dict()["primary.0.0.weight"])


def test_interrupted_twice(tmp_path: Path, data: Data) -> None:
    straight, resumed = localized(), localized()
    train(straight, data, RECIPE, tmp_path / "straight")
    with pytest.raises(Interrupted, match="in epoch 1, after 2 steps"):
        train(localized(), data, RECIPE, tmp_path / "run", on_event=interrupt_after(2))
    with pytest.raises(Interrupted, match="in epoch 2, after 3 steps"):
        train(localized(), data, RECIPE, tmp_path / "run", resume=True, on_event=interrupt_after(5, signal.SIGTERM))
    train(resumed, data, RECIPE, tmp_path / "run", resume=True)
    assert_same_weights(straight, resumed)


def test_an_interrupt_in_the_last_step_ends_the_run(tmp_path: Path, data: Data) -> None:
    result = train(localized(), data, RECIPE, tmp_path, on_event=interrupt_after(3 * STEPS))
    assert len(result.history) == 3


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path, data: Data) -> None:
    first = train(localized(), data, RECIPE, tmp_path)
    metrics = (tmp_path / "metrics.jsonl").read_text()
    again = train(localized(), data, RECIPE, tmp_path, resume=True)
    assert again.history == first.history
    assert (tmp_path / "metrics.jsonl").read_text() == metrics


def test_signal_handlers_are_restored(tmp_path: Path, data: Data) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        train(localized(), data, Recipe(epochs=1, batch_size=30, lr=0.1), tmp_path, on_event=interrupt_after(1))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_an_ignored_signal_stays_ignored(tmp_path: Path, data: Data) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        result = train(localized(), data, RECIPE, tmp_path, on_event=interrupt_after(1))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(result.history) == 3


def test_a_second_interrupt_stops_at_once(tmp_path: Path, data: Data) -> None:
    def twice(event: Event) -> None:
        if isinstance(event, StepDone):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stop:
        train(localized(), data, RECIPE, tmp_path, on_event=twice)
    assert stop.type is KeyboardInterrupt
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": Recipe(epochs=3, batch_size=16, lr=0.06)}, r"lr is 0\.05 there and 0\.06 here"),
        ({"recipe": Recipe(epochs=4, batch_size=16, lr=0.05)}, "epochs is 3 there and 4 here"),
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"method": "bp"}, r"plan\.method is auglocal there and bp here"),
        ({"limit": 50}, "images is .* there and .* here"),
    ],
)
def test_another_run_is_not_resumed(tmp_path: Path, data: Data, change: dict[str, object], message: str) -> None:
    with pytest.raises(Interrupted):
        train(localized(), data, RECIPE, tmp_path, on_event=interrupt_after(1))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    local = localized(str(change.get("method", "auglocal")))
    weights = {name: value.clone() for name, value in local.state_dict().items()}
    if "limit" in change:
        data = load_data("digits", limit=50, image_size=8)
    recipe = change.get("recipe", RECIPE)
    assert isinstance(recipe, Recipe)
    with pytest.raises(CheckpointError, match=message):
        train(local, data, recipe, tmp_path, seed=int(str(change.get("seed", 0))), resume=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert all(torch.equal(value, weights[name]) for name, value in local.state_dict().items())


def test_nothing_to_resume(tmp_path: Path, data: Data) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        train(localized(), data, RECIPE, tmp_path / "none", resume=True)
    assert not (tmp_path / "none").exists()


# What a run writes


def test_files_of_a_run(tmp_path: Path, data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    local = localized()
    result = train(local, data, RECIPE, tmp_path / "deep" / "run")
    folder = tmp_path / "deep" / "run"
    assert sorted(file.name for file in folder.iterdir()) == sorted(RUN_FILES)
    assert capsys.readouterr() == ("", "")
    assert Plan.from_json((folder / "plan.json").read_text()) == local.plan

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines == [metrics.to_dict() for metrics in result.history]
    assert list(lines[0]["module_losses"]) == [module.name for module in local.plan.modules]
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["test_accuracy"]) for row in rows] == [line["test_accuracy"] for line in lines]
    assert float(rows[-1][f"loss.{local.plan.modules[0].name}"]) == next(iter(lines[-1]["module_losses"].values()))

    with Image.open(folder / "curves.png") as picture:
        assert picture.width > 1000
        assert len(set(picture.convert("L").resize((100, 40)).tobytes())) > 10  # something is drawn


def test_weights_load_into_the_plain_model(tmp_path: Path, data: Data) -> None:
    local = localized()
    train(local, data, RECIPE, tmp_path)
    plain = with_dropout()
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(plain.eval()(images), local.primary.eval()(images))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata()["classes"].split("\n") == list(data.classes)


def test_a_new_run_removes_what_an_old_one_left(tmp_path: Path, data: Data) -> None:
    train(localized(), data, RECIPE, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(Interrupted):
        train(localized(), data, RECIPE, tmp_path, on_event=interrupt_after(1))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint.pt", "notes.txt", "plan.json"]


def test_events(tmp_path: Path, data: Data) -> None:
    events: list[Event] = []
    train(localized(), data, RECIPE, tmp_path, on_event=events.append)
    kinds = [type(event) for event in events]
    assert kinds == [Started, *([StepDone] * STEPS + [EpochDone]) * 3]
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [(event.epoch, event.step) for event in steps] == [
        (epoch, step) for epoch in range(3) for step in range(STEPS)
    ]
    assert sum(event.images for event in steps) == 3 * 60


# What it computes


def test_metrics_are_those_of_a_loop_by_hand(tmp_path: Path, data: Data) -> None:
    """The whole run once more, written out with torch alone."""
    recipe = Recipe(epochs=2, batch_size=16, lr=0.05)
    trained, by_hand = (
        localized(model=lambda: cifar_resnet(8, width=4)),
        localized(model=lambda: cifar_resnet(8, width=4)),
    )
    result = train(trained, data, recipe, tmp_path, seed=3)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=1e-4)
    by_hand.train()
    for epoch in range(2):
        losses: list[list[float]] = []
        correct = 0
        for step, (images, labels) in enumerate(data.train_batches(epoch, 16, seed=3)):
            optimizer.param_groups[0]["lr"] = recipe.lr_at(epoch * STEPS + step, STEPS)
            outputs = list(by_hand.steps(images, labels))
            torch.stack([output.loss for output in outputs]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append([output.loss.item() for output in outputs])
            correct += int((outputs[-1].logits.argmax(1) == labels).sum())
        metrics = result.history[epoch]
        means = torch.tensor(losses).mean(0).tolist()
        assert list(metrics.module_losses.values()) == pytest.approx(means, rel=1e-5)
        assert metrics.train_loss == list(metrics.module_losses.values())[-1]
        assert metrics.train_accuracy == correct / 60
    assert_same_weights(trained, by_hand)


def test_bp_is_plain_backpropagation(tmp_path: Path, data: Data) -> None:
    recipe = Recipe(epochs=1, batch_size=16, lr=0.05)
    local = localized("bp", lambda: cifar_resnet(8, width=4))
    train(local, data, recipe, tmp_path, seed=3)
    torch.manual_seed(1)
    model = cifar_resnet(8, width=4).train()
    optimizer = recipe.build_optimizer(model.parameters())
    for step, (images, labels) in enumerate(data.train_batches(0, 16, seed=3)):
        optimizer.param_groups[0]["lr"] = recipe.lr_at(step, STEPS)
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_same_weights(local.primary, model)


class _Constant(nn.Module):
    """Answers 3 with certainty, whatever it sees, but only in eval mode."""

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return nn.functional.one_hot(torch.full((len(images),), 3), 10).float() * 100


def test_evaluate(data: Data) -> None:
    model = _Constant().train()
    loss, accuracy = evaluate(model, data, batch_size=5)
    share = float((data.test_labels == 3).float().mean())
    assert accuracy == pytest.approx(share)
    assert loss == pytest.approx(100 * (1 - share), rel=1e-4)
    assert model.training


@pytest.mark.parametrize("method", ["auglocal", pytest.param("bp", marks=pytest.mark.slow)])
def test_it_learns(tmp_path: Path, method: str) -> None:
    data = load_data("digits", limit=600, image_size=8)
    local = localized(method, lambda: cifar_resnet(8, width=8))
    result = train(local, data, Recipe(epochs=8, batch_size=32, lr=0.1), tmp_path)
    assert result.history[-1].test_accuracy > 0.4  # chance is 0.1
    first, last = result.history[0], result.history[-1]
    assert all(last.module_losses[name] < 0.8 * loss for name, loss in first.module_losses.items())


def test_a_model_with_other_outputs_is_refused(tmp_path: Path, data: Data) -> None:
    local = localized(model=lambda: cifar_resnet(8, num_classes=7, width=4))
    with pytest.raises(DataError, match="the model has 7 outputs, but digits has 10 classes"):
        train(local, data, RECIPE, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_of_maps_is_refused(tmp_path: Path, data: Data) -> None:
    local = localize(UNet(True, classes=10), d=2, example_inputs=torch.empty(2, 3, 8, 8))
    with pytest.raises(DataError, match=r"returns 10x8x8 for an image, but digits has one label for each.*steps"):
        train(local, data, RECIPE, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_divergence_is_reported(tmp_path: Path, data: Data) -> None:
    with pytest.raises(TrainingError, match="became nan in epoch 1"):
        train(localized(), data, Recipe(epochs=2, batch_size=4, lr=1e30, warmup_epochs=0), tmp_path)
