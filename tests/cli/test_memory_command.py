"""``localize-cli memory``: what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from localize import localize
from localize.cli.main import main
from localize.models import cifar_resnet

MODEL_FILE = """
from torch import nn

def chain(num_classes):
    layers = [nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 4), (4, 4), (4, 4), (4, 8))]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))

class Looking(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else super().forward(-x)

def looking():
    layers = [nn.Conv2d(3, 4, 3), Looking(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
"""
CHAIN = ["memory", "m.py:chain", "--classes", "10", "--image-size", "8", "--batch-size", "16", "-d", "2"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.py").write_text(MODEL_FILE)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_prints_the_forecast_and_the_largest_batches(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("memory", "localize:cifar_resnet8", "-d", "2", "--batch-size", "64", "--budget", "100MB") == 0
    out = capsys.readouterr().out
    local = localize(cifar_resnet(8), d=2, example_inputs=torch.empty(2, 3, 32, 32), seed=0)
    forecast = local.plan.memory(64)
    assert out.startswith(f"{forecast}\n\nlargest batch within 100 MB:\n")
    assert max(map(len, out.splitlines())) <= 100
    *_, own, bp, checkpoint = out.splitlines()
    assert own.split() == ["auglocal", str(forecast.largest_batch("100MB"))]
    assert bp.split() == ["backpropagation", str(forecast.rivals[0].largest_batch("100MB"))]
    assert checkpoint.split()[-1] == str(forecast.rivals[1].largest_batch("100MB"))


def test_json_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--optimizer", "adam", "--amp", "bfloat16", "--step", "module", "--json", "--budget", "1MiB"]
    assert run(*CHAIN, "--tau", "0.25", "--modules", "2", *settings) == 0
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert data["name"] == "m.py:chain"
    assert (data["optimizer"], data["amp"], data["step"]) == ("adam", "bfloat16", "module")
    assert len(data["modules"]) == 2
    assert data["budget"] == 2**20
    assert set(data["largest_batch"]) == {"auglocal", "bp", "checkpoint"}
    assert all(batch > 0 for batch in data["largest_batch"].values())
    assert data["rivals"].keys() == {"bp", "checkpoint"}


def test_big_models_are_built_without_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """The wide layer alone would have 4 TB."""
    Path("wide.py").write_text(
        "from torch import nn\n\n"
        "def wide():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10**6), "
        "nn.Linear(10**6, 10**6))\n"
    )
    assert run("memory", "wide.py:wide", "--method", "bp", "--image-size", "8", "--batch-size", "4", "--json") == 0
    assert json.loads(capsys.readouterr().out)["parameters"] > 4 * 10**12


def test_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*CHAIN, "--budget", "1kB") == 0
    assert capsys.readouterr().out.count("none fits") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["memory"], "MODEL"),
        ([*CHAIN, "--budget", "8apples"], "with or without a unit, got '8apples'"),
        ([*CHAIN, "--step", "epoch"], "step must be 'batch' or 'module', got 'epoch'"),
        ([*CHAIN, "--amp", "int8"], "amp must be a floating-point type, got 'int8'"),
        ([*CHAIN, "--optimizer", "lion"], "unknown optimizer 'lion'"),
        ([*CHAIN, "--batch-size", "0"], "batch_size must be an integer >= 1, got 0"),
        ([*CHAIN, "--epochs", "3"], "no option --epochs of memory"),
        (["memory", "timm:resnet1888"], "unknown model"),
        # It localizes if it is built with values, and does not run without.
        (["memory", "m.py:looking", "--image-size", "16"], "cannot be forecast: it depends on the values of a tensor"),
    ],
)
def test_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_help_names_every_option(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run("memory", "--help") == 0
    out = capsys.readouterr().out
    options = "method depth modules batch-size budget optimizer step amp dtype classes image-size json"
    assert [option for option in options.split() if f"--{option}" not in out] == []
