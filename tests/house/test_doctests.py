"""The examples in docstrings run, and the functions that a reader meets first have one."""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path

import pytest

from tests.tools.paths import ROOT

LEAST = 30
"""Public functions, classes and methods with an example."""
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
FILES = [
    path
    for package in ("localize", "passes")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_examples_in_docstrings_run(path: Path) -> None:
    module = importlib.import_module(_module(path))
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    failures: list[str] = []
    for example in finder.find(module):
        runner.run(example, out=failures.append)
    assert not failures, "".join(failures)
    assert runner.tries > 0, "this file's examples stand in no docstring"


def test_what_a_reader_meets_first_has_an_example() -> None:
    names = [f"{_module(path)}.{name}" for path in FILES for name in _public_with_example(path)]
    assert len(names) >= LEAST, names


def _public_with_example(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    defined = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return [
        node.name for node in defined if not node.name.startswith("_") and ">>> " in (ast.get_docstring(node) or "")
    ]
