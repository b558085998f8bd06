"""``localize-cli inspect``: its tables in any width, its JSON, what it says of models that do not localize."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from localize import LocalGraphModule, Plan, localize
from localize.cli import inspect as _inspect
from localize.cli.inspect_module import print_network
from localize.cli.inspect_table import print_modules, print_totals, totals
from localize.cli.main import main
from localize.cli.terminal import LEAST_WIDTH, Page
from localize.methods import METHODS
from localize.models import cifar_resnet
from tests.models.model_file import MODEL_FILE
from tests.tools.paths import ROOT

ODD_NAMES = """
def odd():
    names = ["[bold]" + "a" * 120, "two\\nlines", "ünïcode層" * 12, "esc\\x1b[31m", "tab\\tß"]
    model = nn.Sequential()
    for name, (i, o) in zip(names, ((3, 4), (4, 4), (4, 4), (4, 8), (8, 8))):
        model.add_module(name, nn.Conv2d(i, o, 3, padding=1))
    for name, each in (("p", nn.AdaptiveAvgPool2d(1)), ("f", nn.Flatten()), ("l", nn.Linear(8, 10))):
        model.add_module(name, each)
    return model
"""
CHAIN = ["inspect", "m.py:chain", "-d", "2", "--image-size", "16"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    Path("m.py").write_text(MODEL_FILE + ODD_NAMES, encoding="utf-8")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def _plan(method: str = "auglocal", depth: int = 20, **options: Any) -> Plan:
    return localized(depth, method, **options).plan


def localized(depth: int, method: str, **options: Any) -> LocalGraphModule:
    with torch.device("meta"):
        model = cifar_resnet(depth)
    return localize(model, method, example_inputs=torch.empty(2, 3, 32, 32), seed=0, **options)


# The table


def test_a_row_for_each_module_and_totals(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", "localize:cifar_resnet20", "-d", "4") == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == "localize:cifar_resnet20"
    assert "L=10 local layers in K=7 local modules" in lines
    assert [line.split()[1] for line in lines if re.match(r"\d  ", line)] == [
        *("conv1", "layer1.0", "layer1.1", "layer1.2", "layer2.0", "layer2.1", "layer2.2..layer3.2")
    ]
    assert re.search(
        r"^0  conv1 +0 +16x32x32 +464 +442k +197k\n     d=4: 3 6/2 9/2 head; 77.6k params", out, re.MULTILINE
    )
    assert re.search(r"^parameters +871k +272k +3\.20$", out, re.MULTILINE)
    assert re.search(r"^MACs of a forward pass +101M +40\.8M +2\.48$", out, re.MULTILINE)
    assert re.search(r"^activation bytes at a time +606k +2\.7M +0\.22$", out, re.MULTILINE)
    assert "peak memory" not in out
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if line != line.rstrip()]


def test_wide_terminals_have_a_line_a_module(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert run("inspect", "localize:cifar_resnet20") == 0
    out = capsys.readouterr().out
    assert re.search(r"^0  conv1 +0 +16x32x32 +464 +442k +197k  d=4: 3 6/2 9/2 head +77.6k +12.1M$", out, re.MULTILINE)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_in_every_width(
    method: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = _plan(method, 8)
    for columns in (80, 50, 200):
        monkeypatch.setenv("COLUMNS", f"{columns}")
        page = Page()
        print_modules(page, plan, fold=False)
        print_totals(page, plan, None)
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= max(columns, 72)
        assert len([line for line in lines if re.match(r"\d  [a-z]", line)]) == len(plan.modules)
    found = totals(plan)
    assert sum(found.params[:2]) == plan.params + plan.auxiliary_params
    assert found.params[2] == (plan.original or plan).params
    assert 0 < found.activations[0] <= found.activations[1]


def test_totals_of_backpropagation_are_its_own() -> None:
    found = totals(_plan("bp")).to_dict()
    assert found["params"]["primary"] == found["params"]["backpropagation"]
    assert found["activation_bytes"]["local"] == found["activation_bytes"]["backpropagation"]
    checkpoint = totals(_plan("checkpoint")).to_dict()
    assert checkpoint["activation_bytes"]["local"] < found["activation_bytes"]["local"]
    cascades = totals(_plan("mlaan"))
    assert cascades.macs[2] > 0
    assert cascades.activations[0] > totals(_plan("dgl")).activations[0]


def test_alike_modules_are_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", "localize:cifar_resnet56", "--fold") == 0
    out = capsys.readouterr().out
    assert "8 alike: 2-9" in out
    assert len([line for line in out.splitlines() if re.match(r" ?\d+  \w", line)]) < 12
    plan = _plan("dgl", 8, max_cut=2)
    page = Page()
    print_modules(page, plan, fold=True)
    assert " alike" not in capsys.readouterr().out


def test_odd_names_break_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("inspect", "m.py:odd", "-d", "2", "--image-size", "8") == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\t" not in out
    assert r"esc\x1b[31m..tab\tß" in out
    assert "[bold]aaaa" in out
    assert r"two\nlines" in out
    assert "層" in out
    assert max(map(len, out.splitlines())) <= 80
    assert run("inspect", "m.py:odd", "-d", "2", "--image-size", "8", "--module", "3") == 0
    assert "\x1b" not in capsys.readouterr().out


def test_names_with_line_breaks(capsys: pytest.CaptureFixture[str]) -> None:
    plan = _plan("auglocal", 8, max_cut=1)
    modules = tuple(dataclasses.replace(module, name=f"a\nb.{'c' * 300}") for module in plan.modules)
    print_modules(Page(), dataclasses.replace(plan, modules=modules), fold=True)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert r"a\nb." in "".join(lines)


def test_an_encoding_without_the_letters(tmp_path: Path) -> None:
    script = "from localize.cli.terminal import Page; p = Page(); p.table(('', 'ß'), [('1', '層')]); p.text('ü')"
    for coding, expected in (("ascii", r"\xdf|\u5c64|\xfc"), ("utf-8", "ß|層|ü")):
        done = subprocess.run(
            [sys.executable, "-c", script],
            check=True,
            capture_output=True,
            env={"PYTHONIOENCODING": coding, "PYTHONPATH": str(ROOT)},
        )
        out = done.stdout.decode("utf-8")
        assert [word in out for word in expected.split("|")] == [True] * 3


def test_no_colour_in_a_pipe_and_none_if_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a terminal headings are bold, unless NO_COLOR is set."""
    root = str(ROOT)
    script = (
        "import os, pty, sys\n"
        "code = 'from localize.cli.terminal import Page; Page().title(\"x\")'\n"
        "pty.spawn([sys.executable, '-c', code])\n"
    )
    for extra, styled in (({}, True), ({"NO_COLOR": "1"}, False)):
        environment = {"PYTHONPATH": root, "TERM": "xterm-256color", "PATH": "/usr/bin:/bin", **extra}
        done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, env=environment)
        assert (b"\x1b[1m" in done.stdout) == styled


def test_tiny_terminals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "3")
    assert Page().width == LEAST_WIDTH
    assert run(*CHAIN, "--fold") == 0


# Memory, notes, what is kept whole


def test_memory_of_a_step_is_said_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", "localize:cifar_resnet8", "-d", "2", "--batch-size", "16") == 0
    out = capsys.readouterr().out
    forecast = localized(8, "auglocal", d=2).plan.memory(16)
    peak, rival = forecast.peak, forecast.rivals[0].peak
    assert re.search(rf"^peak memory of a step .* {peak / rival:.2f}$", out, re.MULTILINE)
    assert re.search(r"^ +beside checkpointing .* MB", out, re.MULTILINE)
    assert "memory: of 16 images, sgd; module " in out


def test_alike_notes_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", "localize:cifar_resnet8", "--method", "mlaan") == 0
    assert "modules 0-6: copies of layer 7 are fitted" in capsys.readouterr().out
    plan = _plan("mlaan", 8)
    changed = [dataclasses.replace(plan.modules[i], note="x") for i in (0, 1, 2, 4, 6)]
    assert _inspect.notes(dataclasses.replace(plan, modules=tuple(changed)), None) == ["modules 0-2, 4, 6: x"]


def test_what_is_kept_whole_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", "m.py:whole", "-d", "2", "--image-size", "16") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "kept whole, since they cannot be traced 1 (m.py:" in out
    assert "Move that code into a submodule" in out


def test_models_that_need_values_are_built_with_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", "m.py:looking", "-d", "2", "--image-size", "16") == 0
    assert "K=3 local modules" in capsys.readouterr().out


def test_a_model_that_does_not_localize(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", "m.py:two") == 1
    out, err = capsys.readouterr()
    assert err == ""
    text = " ".join(out.split())
    assert "m.py:two: Two: it has no trainable parameter. Set requires_grad" in text
    assert re.search(r"m\.py:two: Two \(m\.py:\d+\): the model's forward must take one tensor", text)
    assert max(map(len, out.splitlines())) <= 80
    assert run("inspect", "m.py:sequence", "--image-size", "16", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["localizes"]) == ("m.py:sequence", False)
    assert set(found["obstacles"][0]) == {"path", "source", "what", "remedy"}
    assert set(found) == {"model", "localizes", "obstacles"}


# One module


def test_a_module_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", "localize:cifar_resnet20", "--module", "1") == 0
    out = capsys.readouterr().out
    local = localized(20, "auglocal")
    module = local.plan.modules[1]
    assert "module 1 of 7: layer1.0\n" in out
    assert re.search(r"^1  layer1\.0  16x32x32  16x32x32   4\.67k  4\.72M", out, re.MULTILINE)
    assert "d=4: 4/2 6 9/2 head" in out
    assert re.search(r"^ +0  copy of layer 4, layer2\.0 +16->32 +2 +yes +-$", out, re.MULTILINE)
    assert "head: pool > linear(64, 10)" in out
    for name in (*module.parameters, "module_1.auxiliary.head.classifier.weight"):
        assert f"\n  {name}\n" in out
    assert local.local_modules[1].code.strip() in out


@pytest.mark.parametrize(
    ("method", "index", "expected"),
    [
        ("mlaan", "3", ["auxiliary network of the cascaded loss", "also reaches modules 1 layer1", "follows layer 6"]),
        ("mlaan", "0", ["one that is computed from the same run"]),
        ("gn-dgl", "3", ["group 0: channels 0-15", "term: 0.5 * diversity", "conv3x3"]),
        ("gn-dgl", "9", ["classifier"]),
        ("infopro", "0", ["weight 0.05 in the loss", "term: 5 * reconstruction"]),
        ("predsim", "1", ["term: 0.99 * similarity"]),
        ("bp", "0", ["(output loss)", "fc.weight"]),
    ],
)
def test_modules_of_other_methods(
    method: str, index: str, expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("inspect", "localize:cifar_resnet8", "--method", method, "--module", index) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert [text for text in expected if text not in out] == []


def test_what_an_auxiliary_network_reads_besides(capsys: pytest.CaptureFixture[str]) -> None:
    plan = _plan("auglocal", 8)
    network = plan.modules[0].auxiliary
    assert network is not None
    adapted = dataclasses.replace(network.blocks[0], adapter="conv1x1(16, 64)", projection=True)
    print_network(Page(), plan, dataclasses.replace(network, merged=("pool",), blocks=(adapted,)))
    out = capsys.readouterr().out
    assert "reads tensor 1 beside the newest through pool\n" in out
    assert re.search(r"yes +conv1x1\(16,\n? *64\)|yes +conv1x1\(16, 64\)", out)


# JSON


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*CHAIN, "--tau", "0.25", "--modules", "2", "--batch-size", "4", "--module", "0", "--json") == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found = json.loads(out)
    plan = Plan.from_json(json.dumps(found["plan"]))
    assert (len(plan.modules), plan.options["tau"], plan.input.shape) == (2, 0.25, (2, 3, 16, 16))
    assert found["totals"] == totals(plan).to_dict()
    assert found["memory"]["rivals"].keys() == {"bp", "checkpoint"}
    assert found["module"]["layers"][0]["output"]["dtype"] == "float32"
    assert "def forward" in found["module"]["code"]
    assert found["obstacles"] == []
    assert run(*CHAIN, "--json", "--fold") == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"model", "localizes", "plan", "totals", "obstacles"}


def test_the_compilers_options(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--granularity", "0,2", "--max-cut", "1", "--classes", "7", "--json"]
    assert run(*CHAIN, *given) == 0
    found = json.loads(capsys.readouterr().out)["plan"]
    assert len(found["layers"]) == 2
    assert found["prediction"]["outputs"] == 7


def test_big_models_are_built_without_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """The wide layer alone would have 4 TB."""
    Path("wide.py").write_text(
        "from torch import nn\n\n"
        "def wide():\n"
        "    layers = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10**6)]\n"
        "    return nn.Sequential(*layers, nn.Linear(10**6, 10**6))\n"
    )
    assert run("inspect", "wide.py:wide", "--method", "bp", "--image-size", "8") == 0
    assert re.search(r"^parameters +1T +1T +1\.00$", capsys.readouterr().out, re.MULTILINE)


# Errors: exit code 2, one line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect"], "MODEL"),
        (["inspect", "timm:resnet1888"], "unknown model 'timm:resnet1888'. Did you mean resnet18"),
        (["inspect", "m.py:broken"], "cannot build m.py:broken: RuntimeError: no such luck"),
        ([*CHAIN, "--method", "backprop"], "unknown method 'backprop'"),
        ([*CHAIN, "-d", "0"], "d must be an integer >= 1, got 0"),
        ([*CHAIN, "--epochs", "3"], "no option --epochs of inspect"),
        ([*CHAIN, "--module", "9"], "module must be an integer from 0 to "),
        ([*CHAIN, "--module", "-1"], "greater than or equal to 0"),
        ([*CHAIN, "--batch-size", "0"], "greater than or equal to 1"),
    ],
)
def test_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_interrupted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: Any, **options: Any) -> nn.Module:
        raise KeyboardInterrupt

    monkeypatch.setattr("localize.cli.load.localize", stopped)
    assert run(*CHAIN) == 130
    assert capsys.readouterr().err == "interrupted\n"
