"""Runtimes in the training loop and on the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from localize import LocalGraphModule, Runtime
from localize.cli.main import main
from localize.runtime.options import AUTO, PLAIN
from localize.training.data.batches import Data, load_data
from localize.training.events import Interrupted
from localize.training.trainer import train
from tests.tools.training import RECIPE, assert_same_weights, interrupt_after, localized


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits", limit=60, image_size=8)


def trained(runtime: Runtime, data: Data, folder: Path, steps: int | None = None) -> torch.nn.Module:
    """Trained in one go, or interrupted after some steps and resumed."""
    local = localized()
    local.runtime = runtime
    if steps is not None:
        with pytest.raises(Interrupted):
            train(local, data, RECIPE, folder, on_event=interrupt_after(steps))
        local = localized()
        local.runtime = runtime
    train(local, data, RECIPE, folder, resume=steps is not None)
    assert local.runtime.asked == runtime
    return local


def test_compiled_training_is_the_same_training(tmp_path: Path, data: Data) -> None:
    compiled = trained(Runtime(compile=True, backend="eager"), data, tmp_path / "a")
    assert_same_weights(compiled, trained(PLAIN, data, tmp_path / "b"))


def test_interrupted_and_resumed_is_bit_identical(tmp_path: Path, data: Data) -> None:
    assert_same_weights(trained(AUTO, data, tmp_path / "a", 5), trained(AUTO, data, tmp_path / "b"))


def test_resumed_in_another_layout(tmp_path: Path, data: Data) -> None:
    def smooth() -> nn.Sequential:
        """Return a chain without ReLU, which may flip where another layout adds in another order."""
        layers = [
            nn.Sequential(nn.Conv2d(i, o, 3, stride=s, padding=1), nn.BatchNorm2d(o), nn.GELU())
            for i, o, s in ((3, 16, 1), (16, 24, 2), (24, 24, 1))
        ]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))

    def network() -> LocalGraphModule:
        return localized("bp", smooth)

    with pytest.raises(Interrupted):
        train(network(), data, RECIPE, tmp_path / "a", on_event=interrupt_after(5))
    local, plain = network(), network()
    local.runtime = AUTO
    train(local, data, RECIPE, tmp_path / "a", resume=True)
    train(plain, data, RECIPE, tmp_path / "b")
    torch.testing.assert_close(dict(local.state_dict()), dict(plain.state_dict()), rtol=1e-3, atol=1e-4)


def test_autocast_of_the_recipe_lasts_as_long_as_the_run(tmp_path: Path, data: Data) -> None:
    by_recipe, by_runtime = localized(), localized()
    train(by_recipe, data, replace(RECIPE, amp="bfloat16"), tmp_path / "a")
    by_runtime.runtime = Runtime(amp="bfloat16")
    train(by_runtime, data, RECIPE, tmp_path / "b")
    assert by_recipe.runtime.is_plain
    assert_same_weights(by_recipe, by_runtime)


def test_the_command_line_says_what_it_chose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", "localize:cifar_resnet8", "--data", "digits", "--limit", "20", "--image-size", "8"]
    rest = ["--epochs", "1", "-d", "2", "--device", "cpu", "--out", str(tmp_path / "x")]
    with pytest.raises(SystemExit) as stop:
        main(["train", *model, *rest, "--runtime", "auto"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("Runtime(channels_last=True, fused=True) on cpu\n  compile off: ")


def test_the_command_line_refuses_unknown_runtimes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--model", "localize:cifar_resnet8", "--data", "digits", "--runtime", "fast"])
    assert stop.value.code == 2
    assert "unknown runtime 'fast'. Known: plain, auto, compile" in capsys.readouterr().err
