"""Examining models: what a record says, that a leak is seen, and that no model stops a sweep."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from localize import LocalGraphModule, LocalOutput, localize
from localize.bench.sweep.coverage import Log, report
from localize.bench.sweep.examine import examine
from localize.bench.sweep.isolation import Reach, fake_step, reach
from localize.bench.sweep.record import ExamineSettings, ModelRecord, SweepError
from localize.bench.sweep.workers import subjects, sweep
from localize.bench.zoo import ModelError, find_model
from localize.models import CifarResNet

MODELS = """
import os, signal, time
import torch
from torch import nn

def chain():
    layers = [nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 4), (4, 4), (4, 8))]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, a, b):
        return self.layer(a) + b

def two():
    return Two()

def encoder():
    return nn.Sequential(*[nn.Conv2d(3 if i == 0 else 8, 8, 3) for i in range(4)])

def tokens():
    return nn.Sequential(*encoder(), nn.Flatten(2))

class Sloped(nn.Module):
    def __init__(self):
        super().__init__()
        assert [x.item() for x in torch.linspace(0, 1, 3)] == [0.0, 0.5, 1.0]
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("position", torch.arange(3))

def sloped():
    return Sloped()

def broken():
    raise RuntimeError("no such\\nluck")

def dies():
    os.kill(os.getpid(), signal.SIGKILL)

def hangs():
    time.sleep(600)
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("models.py")
    path.write_text(MODELS)
    return path


# One model


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_vit", "torchvision:squeezenet1_0"])
def test_a_model_that_localizes(name: str) -> None:
    seen: list[str] = []
    record = examine(name, "family", ExamineSettings(), seen.append)
    assert (record.name, record.family, record.status, record.stage, record.reason) == (
        name,
        "family",
        "localized",
        "",
        "",
    )
    assert seen == ["build", "localize", "step"]
    assert record.params > 300_000
    assert record.macs > 10_000_000
    assert record.input_shape[0] == 3
    assert record.nodes > record.layers > 6
    assert record.modules == record.layers - 2
    assert 0 < record.largest_share < 1
    assert 0 < record.repaired <= record.blocks
    assert record.cut_width >= 1
    assert (record.opaque, record.untrained) == ((), ())
    assert record.seconds > 0
    assert ModelRecord.from_dict(json.loads(json.dumps(dataclasses.asdict(record)))) == record


@pytest.mark.parametrize("method", ["dgl", "infopro"])
def test_methods_that_copy_no_layers(method: str) -> None:
    record = examine("timm:test_resnet", "", ExamineSettings(method=method))
    assert (record.status, record.modules, record.blocks, record.repaired) == ("localized", record.layers, 0, 0)


def test_settings_reach_the_compiler() -> None:
    record = examine("timm:test_resnet", "", ExamineSettings(method="bp", max_cut=1))
    assert (record.status, record.modules, record.cut_width) == ("localized", 1, 1)


def test_a_refused_model_says_where_and_why(models: Path) -> None:
    record = examine("models.py:two", "", ExamineSettings())
    assert (record.status, record.stage, record.where) == ("refused", "capture", "Two")
    assert "must take one tensor" in record.reason
    assert record.source.startswith("models.py:")
    assert record.params == 6
    broken = examine("models.py:broken", "", ExamineSettings())
    assert (broken.status, broken.stage) == ("refused", "build")
    assert broken.reason.endswith("RuntimeError: no such luck")


@pytest.mark.parametrize("name", ["encoder", "tokens"])
def test_an_encoder_gets_a_classifier(name: str, models: Path) -> None:
    record = examine(f"models.py:{name}", "", ExamineSettings(d=1))
    assert (record.status, record.reason, record.classifier_added, record.layers) == ("localized", "", True, 4)
    assert record.params < 3000
    plain = examine(f"models.py:{name}", "", ExamineSettings(method="bp"))
    assert (plain.status, plain.classifier_added) == ("localized", False)


def test_a_constructor_that_reads_values_is_built_without_memory_too(models: Path) -> None:
    model = find_model("models.py:sloped").build(meta=True)
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"meta"}
    assert model.get_parameter("first.weight") is model.get_parameter("second.weight")
    assert not nn.Linear(1, 1).weight.is_meta
    regnet = find_model("torchvision:regnet_y_400mf").build(meta=True)
    assert all(p.is_meta for p in regnet.parameters())


def test_an_unforeseen_error_is_a_failure(monkeypatch: pytest.MonkeyPatch, models: Path) -> None:
    def bug(*args: object) -> None:
        raise AssertionError("x" * 1000)

    monkeypatch.setattr("localize.bench.sweep.examine.fake_step", bug)
    record = examine("models.py:chain", "", ExamineSettings())
    assert (record.status, record.stage) == ("failed", "step")
    assert record.reason.startswith("AssertionError: xxx")
    assert len(record.reason) == 300
    assert record.source.startswith("test_sweep.py:")
    assert record.layers == 3


# Isolation


def localized(model: nn.Module) -> LocalGraphModule:
    return localize(model.to("meta"), d=2, seed=0, example_inputs=torch.empty(2, 3, 16, 16))


def test_isolated(resnet: CifarResNet) -> None:
    local = localized(resnet)
    assert fake_step(local) == Reach((), ())
    assert all(p.grad is None for p in local.parameters())
    assert all(not p._post_accumulate_grad_hooks for p in local.parameters())


def test_on_real_tensors(resnet: CifarResNet, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    local = localize(resnet, d=2, seed=0, example_inputs=batch[0])
    assert reach(local, *batch) == Reach((), ())


def test_a_leak_is_seen(resnet: CifarResNet, monkeypatch: pytest.MonkeyPatch) -> None:
    local = localized(resnet)
    faithful = local.steps

    def leaking(x: torch.Tensor, y: torch.Tensor) -> Iterator[LocalOutput]:
        for index, out in enumerate(faithful(x, y)):
            yield out._replace(loss=out.loss + resnet.conv1.weight.sum()) if index == 1 else out

    monkeypatch.setattr(local, "steps", leaking)
    names = [module.name for module in local.plan.modules]
    assert fake_step(local).violations == (
        f"the loss of module 1 ({names[1]}) reaches primary.conv1.weight, which belongs to module 0 ({names[0]})",
    )


def test_a_parameter_left_out_is_seen(resnet: CifarResNet, monkeypatch: pytest.MonkeyPatch) -> None:
    local = localized(resnet)
    faithful = local.steps

    def forgetful(x: torch.Tensor, y: torch.Tensor) -> Iterator[LocalOutput]:
        for index, out in enumerate(faithful(x, y)):
            yield out._replace(loss=resnet.conv1.weight.sum()) if index == 0 else out

    monkeypatch.setattr(local, "steps", forgetful)
    found = fake_step(local)
    assert any("module 0" in line and "does not reach primary.bn1.weight" in line for line in found.violations)
    assert {"bn1.weight", "bn1.bias"} <= set(found.untrained)


def test_a_leak_is_a_failure(monkeypatch: pytest.MonkeyPatch, models: Path) -> None:
    faithful = LocalGraphModule.steps

    def leaking(self: LocalGraphModule, x: torch.Tensor, y: torch.Tensor) -> Iterator[LocalOutput]:
        everything = sum(p.sum() for p in self.primary.parameters())
        for out in faithful(self, x, y):
            yield out._replace(loss=out.loss + everything)

    monkeypatch.setattr(LocalGraphModule, "steps", leaking)
    record = examine("models.py:chain", "", ExamineSettings(d=1))
    assert (record.status, record.stage) == ("failed", "isolation")
    assert "reaches primary." in record.reason


class Spare(nn.Module):
    """Has parameters that its forward does not use: one of its own, one in a layer that is used."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1) for i in range(4)))
        self.layers[3].register_parameter("gain", nn.Parameter(torch.ones(1)))
        self.fc = nn.Linear(4, 10)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.layers(x).mean((2, 3)))
        return logits


def test_parameters_that_the_model_does_not_use_are_named_and_are_no_violation() -> None:
    local = localized(Spare())
    assert any(name.startswith("module_") and name.endswith(".gain") for name, _ in local.named_parameters())
    found = fake_step(local)
    assert found.violations == ()
    assert set(found.untrained) == {"layers.3.gain", "unused.weight", "unused.bias"}


def test_frozen_parameters_are_not_untrained(resnet: CifarResNet) -> None:
    resnet.conv1.requires_grad_(False)
    assert fake_step(localized(resnet)) == Reach((), ())


# Many models


def test_names_families_and_filters() -> None:
    everything = dict(subjects())
    assert len(everything) > 1000
    assert everything["timm:resnet50"] == everything["torchvision:resnet50"] == "resnet"
    assert everything["torchvision:vgg11_bn"] == "vgg"
    assert dict(subjects(["timm"], ["test_vit", "timm:test_resnet"])) == {
        "timm:test_resnet": "resnet",
        "timm:test_vit": "vision_transformer",
    }
    assert dict(subjects(["torchvision"], ["squeezenet*"])).keys() == {
        "torchvision:squeezenet1_0",
        "torchvision:squeezenet1_1",
    }
    with pytest.raises(ModelError, match="no model of timm matches vgg_of_1888"):
        subjects(["timm"], ["vgg_of_1888"])
    with pytest.raises(ModelError, match="unknown source of models 'keras'"):
        subjects(["keras"])


def test_a_worker_that_dies_does_not_stop_the_sweep(models: Path) -> None:
    names = ["models.py:chain", "models.py:dies", "models.py:two", "models.py:chain"]
    records = list(sweep([(name, "toys") for name in names], ExamineSettings(), examine, jobs=1))
    assert [record.name for record in records] == names
    assert [record.status for record in records] == ["localized", "failed", "refused", "localized"]
    assert records[1].stage == "build"
    assert "the worker process died: SIGKILL" in records[1].reason
    assert {record.family for record in records} == {"toys"}
    assert records[0].peak_mb > 100


def test_a_model_that_takes_too_long_is_given_up(models: Path) -> None:
    (record,) = sweep([("models.py:hangs", "toys")], ExamineSettings(), examine, jobs=2, timeout=1)
    assert (record.status, record.stage) == ("timeout", "build")
    assert record.reason.startswith("not done after ")


# The file and the report


def record_of(name: str, **facts: object) -> ModelRecord:
    known: dict[str, object] = {"family": "toys", "status": "localized", "layers": 4, "modules": 2, "cut_width": 1}
    return ModelRecord(name=name, **{**known, **facts})  # type: ignore[arg-type]


def test_the_file_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "new" / "sweep.jsonl"
    log = Log(path)
    log.begin(ExamineSettings(), command="x")
    log.append(record_of("timm:a"))
    log.append(record_of("timm:b", status="refused"))
    again = Log(path)
    assert again.records == log.records
    again.begin(ExamineSettings(), command="y")
    again.append(record_of("timm:b", layers=9))
    final = Log(path)
    assert [run["command"] for run in final.runs] == ["x", "y"]
    assert final.records["timm:b"].layers == 9
    assert len(path.read_text().splitlines()) == 5
    assert final.runs[0]["settings"] == dataclasses.asdict(ExamineSettings())
    assert {"localize", "torch", "python"} <= set(final.runs[0]["versions"])


def test_half_a_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    log = Log(path)
    log.begin(ExamineSettings())
    log.append(record_of("timm:a"))
    with path.open("a") as file:
        file.write('{"name": "tim')
    again = Log(path)
    assert list(again.records) == ["timm:a"]
    again.begin(ExamineSettings())
    again.append(record_of("timm:b"))
    assert list(Log(path).records) == ["timm:a", "timm:b"]


def test_a_file_of_another_sweep_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    Log(path).begin(ExamineSettings(granularity=("a", "b")))
    Log(path).begin(ExamineSettings(granularity=("a", "b")))
    before = path.read_text()
    with pytest.raises(SweepError, match=r"d is 3 in .* and 4 here.*--force"):
        Log(path).begin(ExamineSettings(granularity=("a", "b"), d=4))
    assert path.read_text() == before
    Log(path, restart=True).begin(ExamineSettings(d=4))
    assert Log(path).runs[0]["settings"]["d"] == 4
    path.write_text('{"a": 1}\n')
    with pytest.raises(SweepError, match="was not written by a sweep: line 1"):
        Log(path)


def test_report(tmp_path: Path) -> None:
    log = Log(tmp_path / "sweep.jsonl")
    log.begin(ExamineSettings(), command="localize-cli sweep")
    records = [
        record_of("timm:a", layers=3, blocks=4, repaired=3, largest_share=0.2, step_seconds=2.0),
        record_of("timm:b", layers=9, largest_share=0.61, untrained=("w", "x", "y", "z")),
        record_of("timm:c", family="others", opaque=("neck",)),
        record_of("timm:d", family="others", status="refused", stage="capture", where="head", reason="int | float"),
        record_of("torchvision:e", status="timeout", stage="step", reason="not done"),
    ]
    text = report(log.runs, records)
    assert "5 models examined: 3 localized, 1 refused, 1 timeout." in text
    assert "`localize-cli sweep`, " in text
    assert "method=auglocal, d=3; localize " in text
    assert "| toys | 2 | 2 | 3 / 6 / 9 | 2 / 2 / 2 | 1 | 0.61 | 75 % | 1.0 |" in text
    assert "| others | 2 | 1 |" in text
    assert "| toys | 1 | 0 |" in text
    assert "## Not localized: 2" in text
    assert "| timm:d | refused | capture | head | int \\| float |" in text
    assert "| timm:b | 0.61 | 9 | 1 |" in text
    assert "| timm:c | 1 | neck |" in text
    assert "| timm:b | 4 | w, x, y, ... |" in text
    assert text.index("## timm: 4 models") < text.index("## torchvision: 1 models")
