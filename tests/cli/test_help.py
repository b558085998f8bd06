"""Help and completion: what they show, that every example is a command, and that neither waits for torch."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torchvision
import typer.main

from docs import write_cli
from localize.bench.sweep.workers import SOURCES
from localize.bench.zoo import find_model
from localize.cli import names as _names
from localize.cli.completion import joined, models, one_of, several_of
from localize.cli.help import EXAMPLES, PROGRAM
from localize.cli.inspect_why import take_name
from localize.cli.main import app, main
from localize.cli.method_flags import options_of
from localize.methods import METHODS
from localize.runtime.named_optimizers import OPTIMIZERS
from localize.runtime.options import DTYPES, NAMED
from localize.training.recipe import CLIP_BY, STEPS
from tests.tools.paths import ROOT

COMMANDS: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def helped(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        main([*([command] if command else []), "--help"])
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


# Help

HEAVY = ("torch", "timm", "torchvision", "networkx", "numpy", "matplotlib", "sklearn", "safetensors", "PIL")
PROBE = """
import sys
from localize.cli.main import main
for command in {commands}:
    try:
        main([*command, "--help"])
    except SystemExit as end:
        assert end.code == 0
    found = [name for name in {heavy} if name in sys.modules]
    assert not found, (command, found)
print("light")
"""


def test_help_loads_nothing_heavy() -> None:
    script = PROBE.format(commands=[[], *([name] for name in COMMANDS)], heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.endswith("light\n")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_and_ends_in_examples(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = helped(command, capsys)
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    _, _, examples = out.partition("Examples:")
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    assert lines == [f"{PROGRAM} {example}" for example in EXAMPLES[command]]  # each in one line, to be copied
    assert len(lines) >= 2


def test_every_command_has_examples() -> None:
    assert set(EXAMPLES) == {"", *COMMANDS}


@pytest.mark.parametrize("example", [example for examples in EXAMPLES.values() for example in examples])
def test_examples_are_commands(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, *words = shlex.split(example)
    context = COMMANDS[name].make_context(name, words)
    values = context.params
    words = take_name(context.args)[1] if values.get("why") else context.args
    if "method" in values and "depth" in values and words:
        options_of(values["method"], values["depth"], words)
    assert set(str(values.get("methods", "bp")).split(",")) <= set(METHODS) or name == "methods"
    for model in filter(None, (values.get("model"), *(values.get("models") or ()))):
        if ".py:" not in model:
            find_model(model)


@pytest.mark.parametrize("command", ["train", "check", "inspect", "export", "memory"])
def test_help_says_that_models_may_be_code(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "as your own code" in " ".join(re.sub("[│╭╰]", " ", helped(command, capsys)).split())


def test_help_of_export_names_formats_and_views(capsys: pytest.CaptureFixture[str]) -> None:
    out = " ".join(helped("export", capsys).split())
    for name, what in {**_names.FORMATS, **_names.VIEWS}.items():
        assert f"{name}: {what}" in out


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("inspect", "method depth modules max-cut granularity output classes image-size batch-size module fold json"),
        (
            "export",
            "out format view module fold force weights method depth modules max-cut granularity output classes "
            "image-size seed",
        ),
    ],
)
def test_help_names_every_option(command: str, options: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = helped(command, capsys)
    assert [option for option in options.split() if f"--{option} " not in out] == []


def test_the_manual_is_what_its_script_writes() -> None:
    assert write_cli.PAGE.read_text(encoding="utf-8") == write_cli.page(), "run: python docs/write_cli.py"


def test_the_manual_has_every_command_option_and_method() -> None:
    text = write_cli.page()
    for name, command in COMMANDS.items():
        part = text.partition(f"### {PROGRAM} {name}\n")[2].partition("\n#")[0]
        assert part
        forms = [form for parameter in command.params for form in parameter.opts if form.startswith("-")]
        assert [form for form in forms if form != "--help" and not re.search(rf"{form}[ ,`]", part)] == []
    assert [name for name in METHODS if f"\n### --method {name}\n" not in text] == []
    assert max(map(len, text.splitlines())) <= write_cli.WIDTH


# Names that help and completion know


def test_names_are_those_of_the_code() -> None:
    assert list(_names.METHODS) == list(METHODS)
    assert set(_names.OPTIMIZERS) == set(OPTIMIZERS)
    assert set(_names.STEPS) == set(STEPS)
    assert set(_names.CLIP_BY) == set(CLIP_BY)
    assert set(_names.RUNTIMES) == set(NAMED)
    assert set(_names.AUTOCAST) == set(DTYPES)
    assert set(_names.SOURCES) == {*SOURCES, "all"}
    for depth in _names.SIZES:
        find_model(f"localize:cifar_resnet{depth}")


def test_names_of_models_are_those_of_the_libraries() -> None:
    assert {name for name, _ in models("timm:")} == {f"timm:{name}" for name in timm.list_models()}
    known = torchvision.models.list_models(module=torchvision.models)
    assert {name for name, _ in models("torchvision:")} == {f"torchvision:{name}" for name in known}


def test_models_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(
        "raise SystemExit\ndef make():\n    pass\nclass Net:\n    def inner(self): ...\nready = make()\n"
    )
    Path("notes.txt").touch()
    Path("next").mkdir()
    Path("next/deep.py").touch()
    Path(".hidden.py").touch()
    assert models("ne") == [("nets.py:", ""), ("next/", "")]
    assert models("next/") == [("next/deep.py:", "")]
    assert [name for name, _ in models("")] == ["timm:", "torchvision:", "localize:", "nets.py:", "next/"]
    assert models("nets.py:") == [("nets.py:Net", ""), ("nets.py:make", ""), ("nets.py:ready", "")]
    assert models("nets.py:m") == [("nets.py:make", "")]
    assert models("none.py:") == models("nowhere/x") == []
    Path("binary.py").write_bytes(b"\xff\xfe")
    assert models("binary.py:") == []


def test_words() -> None:
    assert one_of(("sgd", "adam"))("a") == [("adam", "")]
    assert one_of({"a": "x", "b": "y"})("") == [("a", "x"), ("b", "y")]
    assert several_of({"a": "x", "ab": "y", "c": "z"})("c,a") == [("c,a", "x"), ("c,ab", "y")]
    assert several_of({"a": "x", "ab": "y"})("a,") == [("a,ab", "y")]


@pytest.mark.parametrize(
    ("words", "typed"),
    [
        (["p", "inspect", "timm", ":", "res"], ["p", "inspect", "timm:res"]),
        (["p", "inspect", "timm", ":"], ["p", "inspect", "timm:"]),
        (["p", "--model", "=", "timm", ":", "res"], ["p", "--model=timm:res"]),
        (["p", "x", "", ""], ["p", "x", "", ""]),
        (["p", ":", "x"], ["p", ":x"]),
        ([], []),
    ],
)
def test_words_that_bash_took_apart(words: list[str], typed: list[str]) -> None:
    assert joined(words) == typed


# Completion, as shells ask for it


def completed(shell: str, line: str) -> list[str]:
    """Return the completions of a line whose last word is incomplete."""
    words = line.split(" ")
    asked = {
        "bash": {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    script = "import sys\nfrom localize.cli.main import main\ntry: main()\n"
    script += f"finally: assert not set(sys.modules) & {set(HEAVY)}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "_LOCALIZE_CLI_COMPLETE": f"complete_{shell}", **asked}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd="/", env=environment)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("localize-cli in", ["inspect"]),
        ("localize-cli inspect --method auglocal", ["auglocal", "auglocal+infopro"]),
        ("localize-cli inspect --method = b", ["bp"]),
        ("localize-cli export --view f", ["full"]),
        ("localize-cli export --format gr", ["graphml"]),
        ("localize-cli inspect localize", ["localize:"]),
        ("localize-cli inspect localize :", [f"cifar_resnet{depth}" for depth in _names.SIZES]),
        ("localize-cli inspect timm : vit_tiny_r", ["vit_tiny_r_s16_p8_224", "vit_tiny_r_s16_p8_384"]),
        ("localize-cli inspect timm:vit_tiny_r", ["timm:vit_tiny_r_s16_p8_224", "timm:vit_tiny_r_s16_p8_384"]),
        ("localize-cli train --model = torchvision : alex", ["alexnet"]),
        ("localize-cli check timm : resnet18 torchvision : alex", ["alexnet"]),
        ("localize-cli train --optimizer ad", ["adam", "adamw"]),
        ("localize-cli train --runtime ", ["plain", "auto", "compile"]),
        ("localize-cli bench localize:cifar_resnet8 --methods bp,ch", ["bp,checkpoint"]),
        ("localize-cli methods gn", ["gn-dgl"]),
    ],
)
def test_bash(line: str, expected: list[str]) -> None:
    assert completed("bash", line) == expected


def test_zsh_and_fish_show_meanings() -> None:
    (zsh,) = completed("zsh", "localize-cli export --view loc")
    assert zsh == """_arguments '*: :(("local":"local modules, each with its loss"))'"""
    fish = completed("fish", "localize-cli inspect --method pred")
    assert fish == ["predsim\ta linear classifier, and similarity matching"]
    assert completed("fish", "localize-cli inspect timm:vit_tiny_r_s16_p8_2") == ["timm:vit_tiny_r_s16_p8_224"]


def test_the_script_for_bash_works_in_bash(tmp_path: Path) -> None:
    program = tmp_path / PROGRAM
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m localize.cli "$@"\n')
    program.chmod(0o755)
    script = f"""
        source <({PROGRAM} --show-completion bash)
        COMP_WORDS=({PROGRAM} inspect localize : cifar_resnet5) COMP_CWORD=4
        $(complete -p {PROGRAM} | sed 's/.*-F \\([^ ]*\\) .*/\\1/') {PROGRAM}
        echo "${{COMPREPLY[@]}}"
    """
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",  # the test's parent is no shell
    }
    done = subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True, env=environment)
    assert done.stdout == "cifar_resnet56\n"


def test_installing_completion(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    for shell in ("bash", "zsh", "fish"):
        command = [sys.executable, "-m", "localize.cli", "--install-completion", shell]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment)
        assert "completion installed in" in done.stdout
    installed = [path for path in tmp_path.rglob("*") if path.is_file() and PROGRAM in path.read_text()]
    assert len(installed) >= 3


def test_ctrl_c_before_a_command_has_begun(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("localize.cli.method_flags.options_of", stopped)  # outside of what says how to go on
    with pytest.raises(SystemExit) as caught:
        main(["inspect", "localize:cifar_resnet8"])
    assert caught.value.code == 130
    assert capsys.readouterr().err.split() == ["interrupted"]
