"""Benchmarks: a whole one, and what the command writes and says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from localize import LocalGraphModule, localize
from localize.bench import measure as module
from localize.bench.flops import step_flops, step_macs
from localize.bench.measure import count, measure
from localize.bench.setup import BenchError, Setup
from localize.bench.zoo import find_model
from localize.cli.main import main
from localize.memory.peak import peak_step_bytes
from localize.models import cifar_resnet
from passes.errors import MethodError

# A whole benchmark


@pytest.mark.parametrize("method", ["predsim", "mlaan", "checkpoint"])
def test_counts_are_those_of_the_functions_they_come_from(method: str) -> None:
    setup = Setup(methods=(method,), depths=(2,), batch_size=8)
    with torch.device("meta"):
        model = cifar_resnet(8, width=4)
    local = localize(model, method, d=2)
    found = count("x", local, setup)
    assert found.peak_bytes == peak_step_bytes(local, 8)
    assert found.fvcore_flops == step_flops(local).total
    assert found.step_macs == step_macs(local)
    assert found.plan_macs == local.plan.macs + local.plan.auxiliary_macs + local.plan.repeated_macs
    assert (found.method, found.modules) == (method, len(local.plan.modules))


def test_autocast_shows_in_the_count() -> None:
    with torch.device("meta"):
        local = localize(cifar_resnet(8), "bp")
    full, half = (count("x", local, Setup(methods=("bp",), amp=amp)).peak_bytes for amp in (None, "bfloat16"))
    assert half < 0.8 * full


def test_methods_start_from_equal_weights_and_the_model_stays() -> None:
    setup = Setup(methods=("auglocal", "bp"), depths=(2, 3), batch_size=2, steps=2, warmup=0, threads=1)
    told: list[str] = []
    threads = torch.get_num_threads()
    found = measure(find_model("localize:cifar_resnet8"), setup, told.append)
    assert [e.label for e in found.entries] == ["auglocal d=2", "auglocal d=3", "bp"]
    assert [len(e.timing.samples) for e in found.entries if e.timing] == [2, 2, 2]
    assert (told[0], told[-1]) == ("auglocal d=2: counting", "round 2 of 2")
    assert torch.get_num_threads() == threads
    assert found.settings["threads"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ()}, "no methods"),
        ({"methods": ("bp",), "batch_size": 0}, "batch size must be at least 1"),
        ({"methods": ("bp",), "steps": 0}, "steps must be at least 1"),
        ({"methods": ("bp",), "threads": 0}, "threads must be at least 1"),
        ({"methods": ("bp",), "amp": "int8"}, "unknown amp 'int8'"),
    ],
)
def test_setups_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        Setup(**options)  # type: ignore[arg-type]


def test_methods_that_there_are_not() -> None:
    with pytest.raises(MethodError, match="nonsense"):
        Setup(methods=("bp", "nonsense"))
    with pytest.raises(MethodError, match="d must be an integer >= 1, got 0"):
        Setup(methods=("auglocal",), depths=(0,))


def test_what_does_not_fit_is_not_timed_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(local: LocalGraphModule, setup: Setup) -> tuple[int, int]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    setup = Setup(methods=("bp",), batch_size=2)
    local = localize(cifar_resnet(8, width=4), "bp")
    entry = count("bp", localize(cifar_resnet(8, width=4).to("meta"), "bp"), setup)
    monkeypatch.setattr(module, "_allocations", lambda local, setup: (7, 9))
    found = module.with_allocations(entry, local, setup)
    assert (found.allocated_bytes, found.reserved_bytes, found.note) == (7, 9, "")
    monkeypatch.setattr(module, "_allocations", too_much)
    found = module.with_allocations(entry, local, setup)
    assert (found.allocated_bytes, found.timing, found.note) == (None, None, "out of memory")


def test_what_does_not_fit_together_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(local: LocalGraphModule, setup: Setup) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "Contender", too_much)
    with pytest.raises(BenchError, match="Take a smaller batch, or fewer methods"):
        measure(find_model("localize:cifar_resnet8"), Setup(methods=("bp",), batch_size=2))


def test_a_model_without_logits_is_refused() -> None:
    class Map(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.net(x).unflatten(1, (1, 2, 2))
            return out

    local = localize(Map().to("meta"), "bp", example_inputs=torch.empty(2, 3, 8, 8, device="meta"))
    with pytest.raises(BenchError, match="cross-entropy of logits"):
        count("bp", local, Setup(methods=("bp",)))


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["bench", *arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


SHORT = ("localize:cifar_resnet8", "-d", "2", "--batch-size", "2", "--steps", "2", "--threads", "1", "--device", "cpu")


def test_the_command_writes_json_page_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SHORT, "--methods", "auglocal,bp,checkpoint", "--out", str(tmp_path / "b")) == 0
    out = capsys.readouterr().out
    assert [line.split("  ")[0] for line in out.splitlines()[3:6]] == ["auglocal d=2", "bp", "checkpoint"]
    written = json.loads((tmp_path / "b/bench.json").read_text())
    assert [e["label"] for e in written["entries"]] == ["auglocal d=2", "bp", "checkpoint"]
    assert [len(e["timing"]["samples_s"]) for e in written["entries"]] == [2, 2, 2]
    assert "| checkpoint |" in (tmp_path / "b/bench.md").read_text()
    assert (tmp_path / "b/bench.png").read_bytes()[:4] == b"\x89PNG"


def test_the_command_prints_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SHORT, "--methods", "bp", "--json", "--out", str(tmp_path / "b")) == 0
    assert json.loads(capsys.readouterr().out)["entries"][0]["ratios"]["time_to_bp"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localize:cifar_resnet8", "--depth", "two"), "--depth must be whole numbers"),
        (("localize:cifar_resnet8", "--methods", "bp,nonsense"), "nonsense"),
        (("localize:cifar_resnet8", "--methods", ","), "no methods"),
        (("localize:cifar_resnet9",), "depth must be 6n + 2, got 9"),
        (("localize:cifar_resnet8", "--device", "nowhere"), "no device 'nowhere'"),
    ],
)
def test_errors_of_the_command(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, "--out", str(tmp_path / "b")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
