"""``localize-cli inspect --why``: where a network is cut, why nowhere else, and which flag would change it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localize.cli.inspect_why import KINDS, flag, take_name
from localize.cli.main import main
from passes.ir import RefusalKind

RESNET = ["inspect", "localize:cifar_resnet8", "-d", "2", "--max-cut", "1"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_all_borders_in_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*RESNET, "--why") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert max(map(len, out.splitlines())) <= 80
    text = " ".join(out.split())
    assert "0 relu 1 cut: layer 0, conv1, ends here" in text
    assert "layer1.0.conv1 2 2 tensors cross it, and at most 1 may: .. layer1.0.bn2 (5) --max-cut 2" in text
    assert "30 borders, 4 of them cuts; the others by reason" in text
    assert "too many tensors cross 19 --max-cut 2" in text


def test_borders_of_one_module(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*RESNET, "--why", "layer1.0") == 0
    out = capsys.readouterr().out
    assert out.count("after ") == 8
    assert "after relu, before layer1.0.conv1 (cifar_resnet.py:" in out
    assert "  Cut: layer 0, conv1, ends here; 1 tensor crosses.\n" in out
    assert "  Not cut: 2 tensors cross it, and at most 1 may.\n  --max-cut 2 lifts this reason.\n" in out
    assert "after layer1.0.bn2, before add in layer1.0" in out


def test_a_border_by_the_name_of_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*RESNET, "--why", "add_1") == 0
    assert capsys.readouterr().out.count("after ") == 2


def test_granularity_is_said_to_keep_blocks_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*RESNET, "--granularity", "block", "--why", "layer1.0.conv1") == 0
    out = capsys.readouterr().out
    assert "Not cut: granularity keeps layer1.0 whole.\n  --granularity minimal lifts this reason." in out


def test_json_has_all_borders(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*RESNET, "--why", "--json") == 0
    borders = json.loads(capsys.readouterr().out)["borders"]
    assert len(borders) == 30
    assert [border["layer"] for border in borders if border["refusal"] is None] == [0, 1, 2, 3]
    assert run(*RESNET, "--why", "avgpool", "--json") == 0
    borders = json.loads(capsys.readouterr().out)["borders"]
    assert {border["refusal"]["kind"] for border in borders if border["refusal"]} == {"classifier"}


def test_a_name_that_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*RESNET, "--why", "layer1.1") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: the network has no border in or next to 'layer1.1'. Did you mean layer1.0, layer1, " + (
        "layer1.0.bn1?\n"
    )


@pytest.mark.parametrize("columns", [50, 120])
def test_odd_names_in_any_width(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", f"{columns}")
    Path("m.py").write_text(
        "from torch import nn\n\n"
        "def odd():\n"
        "    model = nn.Sequential()\n"
        "    for name in ('[bold]' + 'a' * 90, 'esc\\x1b[31m', 'two\\nlines'):\n"
        "        model.add_module(name, nn.Conv2d(3, 3, 3))\n"
        "    model.add_module('pool', nn.AdaptiveAvgPool2d(1))\n"
        "    model.add_module('flat', nn.Flatten())\n"
        "    model.add_module('fc', nn.Linear(3, 10))\n"
        "    return model\n"
    )
    for name in ((), ("two\nlines",)):
        assert run("inspect", "m.py:odd", "-d", "2", "--image-size", "16", "--why", *name) == 0
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= columns
        assert "\x1b" not in out
        assert r"two\nlines" in out


def test_a_model_that_does_not_localize(capsys: pytest.CaptureFixture[str]) -> None:
    Path("m.py").write_text("from torch import nn\n\ndef one():\n    return nn.Flatten()\n")
    assert run("inspect", "m.py:one", "--image-size", "8", "--why") == 1
    assert "no trainable parameter" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "name", "others"),
    [
        ([], "", []),
        (["layer1"], "layer1", []),
        (["layer1", "--tau", "0.5"], "layer1", ["--tau", "0.5"]),
        (["--tau", "0.5", "layer1"], "layer1", ["--tau", "0.5"]),
        (["--tau=0.5", "layer1"], "layer1", ["--tau=0.5"]),
        (["--tau", "0.5"], "", ["--tau", "0.5"]),
    ],
)
def test_the_name_among_other_words(words: list[str], name: str, others: list[str]) -> None:
    assert take_name(words) == (name, others)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("max_cut=2", "--max-cut 2"),
        ("granularity='minimal'", "--granularity minimal"),
        ("granularity=[..., 'layer1.0']", "--granularity ...,layer1.0"),
    ],
)
def test_options_as_flags(option: str, expected: str) -> None:
    assert flag(option) == expected


def test_every_reason_has_its_words() -> None:
    assert set(KINDS) == set(RefusalKind.__args__)  # type: ignore[attr-defined]
