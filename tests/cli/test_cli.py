"""The command line: what it writes, what it says, and one line with exit code 2 for every error of the user's."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from localize.bench import zoo as models
from localize.bench.zoo import ModelError
from localize.cli import demo as _demo
from localize.cli import progress as _display
from localize.cli.main import main
from localize.cli.train import default_folder
from localize.methods import METHODS
from localize.models import cifar_resnet
from localize.training.data.batches import load_data
from localize.training.events import Event, StepDone
from tests.tools.paths import ROOT

MODEL_FILE = """
import torch
from torch import nn

def make(num_classes):
    widths = (3, 4, 4, 4, 8)
    layers = [nn.Conv2d(i, o, 3, padding=1) for i, o in zip(widths, widths[1:])]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))

def seven():
    return make(7)

def grey():
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

def broken():
    raise RuntimeError("no such\\nluck")

def frozen(num_classes=10):
    return make(num_classes).requires_grad_(False)

def number():
    return 3

ready = make(10)
"""
TRAIN = ["train", "--model", "model.py:make", "--data", "digits", "--limit", "40", "--image-size", "8", "-d", "2"]
SHORT = [*TRAIN, "--epochs", "2", "--batch-size", "20"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL_FILE)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def tree() -> dict[str, bytes]:
    files = (path for path in Path().rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path): path.read_bytes() for path in files}


# Training


def test_train_writes_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SHORT) == 0
    folder = Path("runs/model-make-auglocal-d2")
    names = ["checkpoint.pt", "curves.png", "metrics.csv", "metrics.jsonl", "model.safetensors", "plan.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert json.loads((folder / "plan.json").read_text())["method"] == "auglocal"
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert re.match(r"epoch 1/2  loss \d", lines[0])
    assert re.match(r"test accuracy \d+\.\d\d %, files in ", lines[-1])
    assert len(lines) == 3
    assert "\x1b" not in out


@pytest.mark.parametrize("method", METHODS)
def test_methods_are_listed_with_every_option_and_its_meaning(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods", method) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{method}: ")
    assert lines[0].endswith(".")
    fields = dataclasses.fields(METHODS[method].Options)
    titles = [i for i, line in enumerate(lines) if line.startswith("  -")]
    names = [lines[i].split(" (default ")[0].split("--")[1].replace("-", "_") for i in titles]
    assert ["depth" if field.name == "d" else field.name for field in fields] == names
    for i, field in zip(titles, fields, strict=True):
        assert lines[i].endswith(f" (default {field.default})")
        assert lines[i + 1].startswith("    ")
        assert len(lines[i + 1].strip()) > 10
    assert max(map(len, lines[1:]), default=0) <= 80


def test_all_methods_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods") == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == list(METHODS)


def test_train_takes_options_of_the_method() -> None:
    given = {"tau": 0.25, "selection": "conv3x3", "head_norm": False, "width": 2, "max_aux_macs": None}
    options = ["--tau", "0.25", "--selection=conv3x3", "--no-head-norm", "--width", "2", "--max-aux-macs", "none"]
    assert run(*SHORT, *options) == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name == "model-make-auglocal-d2-tau-0.25-selection-conv3x3-head_norm-False-width-2-max_aux_macs-None"
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["options"] | given == plan["options"]
    assert plan["options"]["d"] == 2
    assert run(*SHORT, *options, "--resume") == 0


@pytest.mark.parametrize("method", ["infopro", "auglocal+infopro"])
def test_train_says_how_it_normalizes_images(method: str) -> None:
    """InfoPro reconstructs images as they were before."""
    assert run(*SHORT, "--epochs", "1", "--method", method, "--out", "x") == 0
    data = load_data("digits", image_size=8, limit=40)
    options = json.loads(Path("x/plan.json").read_text())["options"]
    assert (options["mean"], options["std"]) == (data.mean.tolist(), data.std.tolist())
    assert run(*SHORT, "--epochs", "1", "--method", method, "--out", "x", "--resume") == 0
    given = ["--mean", "0.3", "--std=(0.3, 0.3, 0.35)"]
    assert run(*SHORT, "--epochs", "1", "--method", method, "--out", "y", *given) == 0
    options = json.loads(Path("y/plan.json").read_text())["options"]
    assert (options["mean"], options["std"]) == (0.3, [0.3, 0.3, 0.35])


def test_autocast_and_channels_last_leave_weights_in_single_precision() -> None:
    assert run(*SHORT, "--amp", "bfloat16", "--channels-last", "--out", "x") == 0
    assert run(*SHORT, "--out", "y") == 0
    weights, plain = (load_file(f"{folder}/model.safetensors") for folder in "xy")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    # What was computed in bfloat16 is near, and not the same.
    differences = [float((weights[name] - plain[name]).abs().max()) for name in plain]
    assert 0 < max(differences) < 0.1


def test_folders_name_the_depth_of_methods_that_have_one() -> None:
    assert default_folder("timm:resnet18", "dgl", 4, {"hidden": 1}) == Path("runs/resnet18-dgl-hidden-1")
    assert default_folder("timm:resnet18", "auglocal+infopro", 4, {}) == Path("runs/resnet18-auglocal-infopro-d4")


def test_trained_weights_load_into_the_plain_model() -> None:
    arguments = ["--model", "localize:cifar_resnet8", "--data", "digits", "--limit", "20", "--image-size", "8"]
    assert run("train", *arguments, "--epochs", "1", "--method", "bp", "--out", "x") == 0
    cifar_resnet(8).load_state_dict(load_file("x/model.safetensors"), strict=True)


def test_same_seed_same_weights_and_another_seed_others() -> None:
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert run(*SHORT, "--seed", seed, "--out", name) == 0
    a, b, c = (load_file(f"{name}/model.safetensors") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["0.weight"], c["0.weight"])


@pytest.mark.parametrize("model", ["model.py:grey", "model.py:ready"])
def test_models_of_the_users_own(model: str) -> None:
    assert run(*SHORT, "--model", model, "--method", "bp", "--out", "x") == 0


def test_interrupt_and_resume(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*SHORT, "--out", "whole") == 0
    shown = _display.Display.on_event

    def interrupted(self: _display.Display, event: Event) -> None:
        shown(self, event)
        if isinstance(event, StepDone) and (event.epoch, event.step) == (1, 0):
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(_display.Display, "on_event", interrupted)
        capsys.readouterr()
        assert run(*SHORT, "--out", "stopped") == 130
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "interrupted in epoch 2, after 1 step of it; resuming goes on from stopped/checkpoint.pt" in err
    assert run(*SHORT, "--out", "stopped", "--resume") == 0
    assert "resumed in epoch 2, step 2" in capsys.readouterr().out
    whole, stopped = (load_file(f"{name}/model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_force_starts_anew() -> None:
    assert run(*SHORT, "--out", "x") == 0
    first = Path("x/metrics.jsonl").read_text()
    assert run(*SHORT, "--out", "x", "--force", "--seed", "1") == 0
    assert Path("x/metrics.jsonl").read_text() != first


# Errors: exit code 2, one line, nothing written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*SHORT, "--data", "nowhere"], "no data source 'nowhere'"),
        ([*SHORT, "--data", "."], "no folder train in ."),
        ([*SHORT, "--model", "resnet"], "unknown model 'resnet'"),
        ([*SHORT, "--model", "timm:resnet1888"], "unknown model 'timm:resnet1888'. Did you mean resnet18"),
        ([*SHORT, "--model", "torchvision:vgg11_nb"], "Did you mean vgg11_bn"),
        ([*SHORT, "--model", "localize:cifar_resnet9"], "depth must be 6n + 2, got 9"),
        ([*SHORT, "--model", "none.py:make"], "no file none.py"),
        ([*SHORT, "--model", "model.py:mak"], "Did you mean make?"),
        ([*SHORT, "--model", "model.py:broken"], "cannot build model.py:broken: RuntimeError: no such luck"),
        ([*SHORT, "--model", "model.py:number"], "gave a int, not a torch.nn.Module"),
        ([*SHORT, "--model", "model.py:seven"], "has 7 outputs, but digits has 10 classes"),
        ([*SHORT, "--model", "model.py:frozen"], "error: "),
        ([*SHORT, "--method", "backprop"], "unknown method 'backprop'. Known methods: auglocal, "),
        ([*SHORT, "-d", "0"], "error: "),
        ([*SHORT, "--modules", "99"], "error: "),
        ([*SHORT, "--modules", "0"], "error: "),
        ([*SHORT, "--optimizer", "lion"], "unknown optimizer 'lion'"),
        ([*SHORT, "--lr", "-1"], "lr must be above 0"),
        ([*SHORT, "--epochs", "0"], "epochs must be at least 1"),
        ([*SHORT, "--epochs", "many"], "'--epochs'"),
        ([*SHORT, "--limit", "3"], "limit of 3 images for 10 classes"),
        ([*SHORT, "--image-size", "0"], "greater than or equal to 1"),
        ([*SHORT, "--device", "abacus"], "no device 'abacus'"),
        ([*SHORT, "tau=1"], "unexpected argument 'tau=1'"),
        ([*SHORT, "--tau"], "tau must be a number from 0 to 1, got True"),
        (
            [*SHORT, "--gamma", "1"],
            "no option --gamma of train, or of method 'auglocal'. Its options: -d",
        ),
        ([*SHORT, "--epoch", "1"], "no option --epoch"),
        ([*SHORT, "--d", "3"], "no option --d "),
        ([*SHORT, "--tau", "0", "--tau=1"], "--tau is given twice"),
        ([*SHORT, "--tau", "much"], "tau must be a number from 0 to 1, got 'much'"),
        ([*SHORT, "--tau", "(1"], "tau must be a number from 0 to 1, got '(1'"),
        (
            [*SHORT, "--selection", "odd"],
            "selection must be 'uniform', 'sequential', 'repetitive', 'conv1x1' or 'conv3x3', got 'odd'",
        ),
        ([*SHORT, "--max-aux-macs", "1e9"], "max_aux_macs must be an integer > 0, got 1000000000.0"),
        (
            [*SHORT, "--method", "bp", "--tau", "1"],
            "of method 'bp': it is an option of auglocal",
        ),
        ([*SHORT, "--max-aux-macs", "1"], "max_aux_macs=1 (1 multiply-accumulates) cannot be met"),
        ([*SHORT, "--resume"], "nothing to resume in runs"),
        ([*SHORT, "--resume", "--force"], "contradict"),
        ([*SHORT, "--out", "model.py"], "model.py is a file, not a folder"),
        ([*SHORT, "--depht", "3"], "--depht"),
        (["train", "--data", "digits"], "--model"),
        (["tarin"], "No such command 'tarin'"),
        (["check", "timm:resnet1888"], "unknown model"),
        (["check"], "MODEL"),
    ],
)
def test_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree()
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert tree() == before
    assert not Path("runs").exists()


def test_an_existing_run_is_neither_overwritten_nor_mixed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SHORT, "--out", "x") == 0
    before = tree()
    capsys.readouterr()
    for arguments, message in (
        ([], "folder x is not empty. Continue with --resume"),
        (["--resume", "--seed", "1"], "seed is 0 there and 1 here"),
        (["--resume", "--batch-size", "10"], "batch_size is 20 there and 10 here"),
        (["--resume", "--method", "bp"], "plan.method is auglocal there and bp here"),
        (["--resume", "-d", "3"], "plan."),
        (["--resume", "--limit", "30"], "images is"),
        (["--force", "--lr", "0"], "lr must be above 0"),
    ):
        assert run(*SHORT, "--out", "x", *arguments) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
        assert tree() == before


def test_a_checkpoint_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    Path("x").mkdir()
    Path("x/checkpoint.pt").write_bytes(b"junk")
    assert run(*SHORT, "--out", "x", "--resume") == 2
    assert "is not a checkpoint" in capsys.readouterr().err
    assert [path.name for path in Path("x").iterdir()] == ["checkpoint.pt"]


# check (more of it in test_check_and_sweep.py), demo, help


def test_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "localize:cifar_resnet8") == 0
    assert "localizes" in capsys.readouterr().out
    assert run("check", "model.py:frozen") == 1
    out, err = capsys.readouterr()
    assert "no trainable parameter" in out
    assert err == ""


def test_demo_prints_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_data("digits", limit=20)
    monkeypatch.setattr(_demo, "load_data", lambda *args, **kwargs: loaded)
    assert run("demo", "--epochs", "1") == 0
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if " MB " in line]
    assert [row.strip().split("   ")[0] for row in rows] == list(_demo.NAMES.values())
    local, plain, checkpointed = (int(re.findall(r"([\d,]+) MB", row)[0].replace(",", "")) for row in rows)
    assert max(local, checkpointed) < plain
    accuracy = [re.findall(r"([\d.]+) %", row)[0] for row in rows]
    assert accuracy[1] == accuracy[2]
    assert "batch 1024" in out
    assert "\x1b" not in out


def test_help_names_every_option(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run("--help") == 0
    out = capsys.readouterr().out
    assert [command for command in ("train", "check", "sweep", "bench", "demo") if command not in out] == []
    assert run("train", "--help") == 0
    out = capsys.readouterr().out
    options = (
        "model data method depth modules epochs batch-size lr optimizer weight-decay seed device limit test-limit "
        "image-size out resume force"
    )
    assert [option for option in options.split() if f"--{option}" not in out] == []
    assert "your own code" in out


def test_heavy_packages_stay_out_of_the_command_line() -> None:
    heavy = ("timm", "torchvision", "sklearn", "matplotlib")
    script = f"import sys, localize.cli.main; print([m for m in {heavy} if m in sys.modules])"
    root = ROOT
    answer = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=root)
    assert answer.stdout.strip() == "[]"


# Models from strings


def test_small_images_are_fed_as_they_are_where_the_model_takes_them() -> None:
    convolutional = models.find_model("timm:resnet18").build(10)
    assert models.input_size(convolutional, (32, 32), 3) is None
    assert models.input_size(convolutional, None, 3) == 224
    transformer = models.find_model("timm:vit_tiny_patch16_224").build(10)
    assert models.input_size(transformer, (32, 32), 3) == 224
    resized = models.find_model("timm:vit_tiny_patch16_224").build(10, image_size=64)
    assert models.takes(resized, (3, 64, 64))


def test_torchvision_models() -> None:
    model = models.find_model("torchvision:mobilenet_v2").build(7)
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def test_a_file_that_cannot_be_run(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import no_such_package")
    with pytest.raises(ModelError, match=r"bad\.py cannot be run: ModuleNotFoundError"):
        models.find_model(f"{tmp_path / 'bad.py'}:make")


def test_a_model_file_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_a_model.py").write_text("WIDTH = 4")
    (tmp_path / "good.py").write_text(
        "from torch import nn\nfrom neighbour_of_a_model import WIDTH\ndef make(): return nn.Linear(WIDTH, 2)\n"
    )
    before = list(sys.path)
    model = models.find_model(f"{tmp_path / 'good.py'}:make").build(2)
    assert isinstance(model, torch.nn.Linear)
    assert sys.path == before
