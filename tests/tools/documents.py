"""Runs the code blocks of a Markdown page in order, as a reader would.

- ``python``: run, all blocks of a page in one namespace. Set-up that a reader need not see stands in an HTML comment,
  ``<!-- invisible-code-block: python ... -->``.
- ``console``: each command must be one that exists, with flags that it has. Where the block's output follows, the last
  command is run.
- ``text``: the output of the block before it. ``...`` stands for anything.
- ``py``: a file of this project, included. Its own test runs it.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import typer.core
from sybil import Document, Example
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown.codeblock import CodeBlockParser

from localize.cli.inspect_why import take_name
from localize.cli.main import app, main
from localize.cli.method_flags import options_of
from tests.tools.paths import ROOT

SHOWN = {"bibtex", "py"}
"""Languages of blocks that are not run here."""
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INCLUDED = re.compile(r'--8<-- "[\w/]+\.py"\n')
OUTPUT_FOLLOWS = re.compile(r"\s*```\s*```text\n")
PROGRAM = "localize-cli"

Check: TypeAlias = Callable[[list[str]], None]


def assert_page_runs(path: Path) -> int:
    """Run all blocks of a page and return their number; the first that fails raises."""
    reader = _Reader()
    languages = {"python": reader.python, "console": reader.console, "text": reader.text}
    parsers = [CodeBlockParser(language, evaluator) for language, evaluator in languages.items()]
    fences = FENCE.findall(path.read_text(encoding="utf-8"))
    unknown = {language for language, _ in fences} - languages.keys() - SHOWN
    assert not unknown, f"{path.name} has blocks that nothing runs: {unknown}"
    assert all(INCLUDED.fullmatch(text) for language, text in fences if language == "py")
    examples = list(Document.parse(str(path), *parsers).examples())
    for example in examples:
        example.evaluate()
    return len(fences)


class _Reader:
    """Evaluates blocks, and remembers what the last one printed."""

    def __init__(self) -> None:
        self.output = ""

    def python(self, example: Example) -> None:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            PythonEvaluator()(example)
        self.output = output.getvalue()

    def console(self, example: Example) -> None:
        commands = [shlex.split(line, comments=True) for line in example.parsed.replace("\\\n", " ").splitlines()]
        commands = [command for command in commands if command]
        for command in commands:
            assert command[0] in CHECKS, f"nothing knows whether this command is right: {shlex.join(command)}"
            CHECKS[command[0]](command[1:])
        if OUTPUT_FOLLOWS.match(example.document.text, example.region.end - len("```\n")):
            self.output = _run(commands[-1])

    def text(self, example: Example) -> None:
        expected = str(example.parsed)
        flags = doctest.ELLIPSIS
        checker = doctest.OutputChecker()
        if not checker.check_output(expected, self.output, flags):
            difference = checker.output_difference(doctest.Example("", expected), self.output, flags)
            raise AssertionError(f"{example.path}:{example.line}: the output is another one\n{difference}")


def _run(command: list[str]) -> str:
    assert command[0] == PROGRAM, f"only {PROGRAM} is run: {shlex.join(command)}"
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
        main(command[1:])
    return output.getvalue()


def _check_own(words: list[str]) -> None:
    """Check that ``localize-cli`` takes these words: its commands and flags, and options of the method."""
    program = typer.main.get_command(app)
    assert isinstance(program, typer.core.TyperGroup)
    assert words[0] in program.commands, f"{PROGRAM} has no command {words[0]}"
    context = program.commands[words[0]].make_context(words[0], words[1:])
    arguments = take_name(context.args)[1] if context.params.get("why") else context.args
    if arguments:
        options_of(context.params["method"], context.params["depth"], arguments, words[0])


def _check_make(words: list[str]) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(words) <= set(targets)


def _check_pip(words: list[str]) -> None:
    assert words[:2] == ["install", "-e"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    extra = re.fullmatch(r"\.(?:\[(\w+)\])?", words[2])
    assert extra is not None
    assert extra[1] is None or extra[1] in extras


def _check_file(words: list[str]) -> None:
    files = [word for word in words if word.endswith(".py") or "/" in word]
    assert files
    assert [file for file in files if not (ROOT / file.partition("::")[0]).exists()] == []


def _check_pytest(words: list[str]) -> None:
    known = {"slow", "registry", "not thirty"}
    assert [
        word for word in words if not word.startswith("-") and word not in known and not (ROOT / word).exists()
    ] == []


CHECKS: dict[str, Check] = {
    PROGRAM: _check_own,
    "make": _check_make,
    "pip": _check_pip,
    "python": _check_file,
    "torchrun": _check_file,
    "pytest": _check_pytest,
    ".ci/run": lambda words: None,
}
