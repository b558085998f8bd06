"""``localize-cli export``: what it hands to the library, what it writes, and its exit codes. Formats have own tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save, save_file

from localize.cli import names as _names
from localize.cli.main import main
from localize.cli.weights import WeightsError, load_weights, read_weights
from localize.export import FORMATS, Format, Request, formats
from localize.runtime.exporting import VIEWS
from localize.text import format_bytes
from tests.models.model_file import MODEL_FILE

CHAIN = ["export", "m.py:chain", "-d", "2", "--image-size", "8"]
TRAIN = ["train", "--model", "m.py:chain", "--data", "digits", "--limit", "20", "--image-size", "8", "--epochs", "1"]


def _told(request: Request) -> bytes:
    """Write what was asked of the export as JSON."""
    view, plan = request.view, request.local.plan
    meta = all(parameter.is_meta for parameter in request.local.primary.parameters())
    asked = {"view": view.kind, "module": view.module, "fold": view.fold, "meta": meta}
    return json.dumps({**asked, "options": dict(plan.options), "modules": len(plan.modules)}).encode()


def _weights(request: Request) -> bytes:
    return save({name: value.contiguous() for name, value in request.local.state_dict().items()})


def _stopped(request: Request) -> bytes:
    raise KeyboardInterrupt


def _full(request: Request) -> bytes:
    raise OSError("no space left")


FAKE: Mapping[str, Format] = {
    "told": Format(what="what was asked", write=_told, views=VIEWS, parts=True),
    "few": Format(what="one view", write=_told, views=("local",)),
    "net": Format(what="weights", write=_weights, views=VIEWS, values=True),
    "stop": Format(what="a Ctrl-C", write=_stopped, views=VIEWS),
    "full": Format(what="a full disk", write=_full, views=VIEWS),
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(formats, "FORMATS", FAKE)
    Path("m.py").write_text(MODEL_FILE, encoding="utf-8")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir() if path.name not in ("m.py", "__pycache__"))


def test_names_for_help_are_those_of_the_formats() -> None:
    assert {name: kind.what for name, kind in FORMATS.items()} == _names.FORMATS
    assert [name for name in ("onnx", "pt2") if name in FORMATS and not FORMATS[name].values] == []
    assert tuple(_names.VIEWS) == VIEWS


def test_writes_what_is_asked_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--view", "local", "--module", "0", "--fold", "--tau", "0.25", "--modules", "2", "--max-cut", "1"]
    assert run(*CHAIN, "-o", "x.told", *settings) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"wrote x.told (told: what was asked, {Path('x.told').stat().st_size} B)\n", "")
    found = json.loads(Path("x.told").read_text())
    assert found["options"]["tau"] == 0.25
    del found["options"]
    assert found == {"view": "local", "module": 0, "fold": True, "meta": True, "modules": 2}
    assert files() == ["x.told"]


def test_the_format_by_name_and_a_file_that_is_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*CHAIN, "--out", "x.txt", "--format", "few") == 0
    before = Path("x.txt").read_bytes()
    assert json.loads(before)["view"] == "local"
    capsys.readouterr()
    assert run(*CHAIN, "--out", "x.txt", "--format", "told") == 2
    assert capsys.readouterr().err == "error: x.txt exists. Give another name, or force (--force) to replace it\n"
    assert Path("x.txt").read_bytes() == before
    assert run(*CHAIN, "--out", "x.txt", "--format", "told", "--force") == 0
    assert json.loads(Path("x.txt").read_bytes())["view"] == VIEWS[0]


def test_formats_that_hold_weights_get_a_model_that_has_such() -> None:
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert run(*CHAIN, "-o", f"{name}.net", "--seed", seed) == 0
    a, b, c = (load(Path(f"{name}.net").read_bytes()) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["primary.0.weight"], c["primary.0.weight"])
    assert any(".auxiliary." in name for name in a)


@pytest.mark.parametrize("extra", [[], ["--ema", "0.5"]])
def test_weights_of_a_run(extra: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*TRAIN, "-d", "2", "--out", "r", *extra) == 0
    given = [*CHAIN, "--classes", "10", "--weights"]
    assert run(*given, "r/model.safetensors", "-o", "a.net") == 0
    assert run(*given, "r/checkpoint.pt", "-o", "b.net") == 0
    trained = load_file("r/model.safetensors")
    plain, whole = (load(Path(f"{name}.net").read_bytes()) for name in "ab")
    for name, value in trained.items():
        assert torch.equal(plain[f"primary.{name}"], value)
        assert torch.equal(whole[f"primary.{name}"], value)
    checkpoint = torch.load("r/checkpoint.pt", weights_only=True)["local"]
    own = [name for name in checkpoint if ".auxiliary." in name]
    assert own
    assert all(torch.equal(whole[name], checkpoint[name]) for name in own)
    torch.save(trained, "plain.pt")
    assert run(*given, "plain.pt", "-o", "c.net") == 0
    assert Path("c.net").read_bytes() == Path("a.net").read_bytes()
    # A drawing is no reason not to look at what was given.
    assert run(*given, "plain.pt", "-o", "d.told") == 0
    assert json.loads(Path("d.told").read_text())["meta"] is False


def test_weights_of_a_network_that_the_method_made() -> None:
    arguments = ["--method", "gn-dgl", "--groups", "2"]
    model = "localize:cifar_resnet8"
    assert run(*TRAIN, "--model", model, *arguments, "--image-size", "16", "--out", "r") == 0
    shared = ["export", model, *arguments, "--image-size", "16", "--weights", "r/model.safetensors"]
    assert run(*shared, "-o", "x.net") == 0
    trained, found = load_file("r/model.safetensors"), load(Path("x.net").read_bytes())
    assert all(torch.equal(found[f"primary.{name}"], value) for name, value in trained.items())


# Errors: exit code 2, one line, nothing written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export"], "MODEL"),
        (CHAIN, "'--out'"),
        ([*CHAIN, "-o", "x.tald"], "unknown format 'tald'. Did you mean told? Formats: told, few"),
        ([*CHAIN, "-o", "x"], "the format of x is not known: its name has no suffix"),
        ([*CHAIN, "-o", "no/x.told"], "the folder no does not exist"),
        ([*CHAIN, "-o", "x.told", "--view", "side"], "unknown view 'side'. Views: primary, local"),
        ([*CHAIN, "-o", "x.few", "--view", "full"], "few has no view 'full'"),
        ([*CHAIN, "-o", "x.few", "--fold"], "few has neither a single module nor folding"),
        ([*CHAIN, "-o", "x.told", "--module", "9"], "module must be an integer from 0 to "),
        ([*CHAIN, "-o", "x.full"], "no space left"),
        ([*CHAIN, "-o", "x.told", "--epochs", "3"], "no option --epochs of export"),
        ([*CHAIN, "-o", "x.told", "--method", "backprop"], "unknown method 'backprop'"),
        ([*CHAIN, "-o", "x.told", "--modules", "99"], "modules must be an integer from 1 to"),
        (["export", "m.py:broken", "-o", "x.told"], "cannot build m.py:broken: RuntimeError: no such luck"),
        (["export", "m.py:two", "-o", "x.told"], "error: "),
        ([*CHAIN, "-o", "x.net", "--weights", "none.pt"], "no file none.pt"),
        ([*CHAIN, "-o", "x.net", "--weights", "m.py"], "m.py is not a file of weights"),
    ],
)
def test_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert files() == []


@pytest.mark.parametrize("name", ["dot", "json"])
def test_formats_that_there_are(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "FORMATS", FORMATS)
    assert run(*CHAIN, "-o", f"x.{name}") == 0
    size = format_bytes(Path(f"x.{name}").stat().st_size)
    assert capsys.readouterr().out == f"wrote x.{name} ({name}: {_names.FORMATS[name]}, {size})\n"


def test_interrupted(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*CHAIN, "-o", "x.stop") == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert files() == []


class Trap:
    """Runs code when it is unpickled, unless nobody lets it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("trapped"),)


def test_files_of_weights_run_no_code(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": Trap()}, "x.pt")
    assert run(*CHAIN, "-o", "x.net", "--weights", "x.pt") == 2
    assert "it holds more than tensors and plain values" in capsys.readouterr().err
    assert files() == ["x.pt"]


def test_weights_of_another_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*CHAIN, "-o", "a.net") == 0
    state = {
        name.removeprefix("primary."): value
        for name, value in load(Path("a.net").read_bytes()).items()
        if name.startswith("primary.")
    }
    capsys.readouterr()
    for changed, message in (
        ({**state, "6.weight": torch.zeros(7, 8)}, "6.weight is 7x8 there and 10x8 here"),
        ({name: value for name, value in state.items() if name != "1.bias"}, "1.bias is not there"),
        ({**state, "more": torch.zeros(1)}, "more is not here"),
        ({f"x.{name}": value for name, value in state.items()}, "; and "),
    ):
        save_file(changed, "w.safetensors")
        assert run(*CHAIN, "-o", "b.net", "--weights", "w.safetensors") == 2
        err = capsys.readouterr().err
        assert err.startswith("error: the weights in w.safetensors are not this model's: ")
        assert message in err
        assert "--classes" in err
        assert err.count("\n") == 1
    assert not Path("b.net").exists()


def test_files_that_hold_no_weights() -> None:
    Path("x.safetensors").write_bytes(b"junk")
    Path("junk.pt").write_bytes(b"junk")
    torch.save([1, 2], "list.pt")
    torch.save({}, "empty.pt")
    for name in ("x.safetensors", "junk.pt", "list.pt", "empty.pt"):
        with pytest.raises(WeightsError, match=r"is not a |has no "):
            read_weights(Path(name))


def test_tied_weights_whose_average_has_one_name() -> None:
    from torch import nn

    from localize import localize
    from localize.cli.weights import Weights

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.stem, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.second(self.first(self.stem(x)).relu()).mean((2, 3)))  # type: ignore[no-any-return]

    local = localize(Tied(), "bp", example_inputs=torch.zeros(2, 3, 8, 8))
    average = {name: torch.ones_like(value) for name, value in local.primary.named_parameters()}
    assert "second.weight" not in average
    load_weights(local, Weights(average=average), Path("x"))
    assert all(bool((parameter == 1).all()) for parameter in local.primary.parameters())
