"""What holds of the tests themselves: no test imports a test, and what tests share imports none."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.tools.paths import ROOT, TESTS

FILES = {path.relative_to(ROOT).as_posix(): path for path in sorted(TESTS.rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """Names of all modules that a file imports, and of what it takes from them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("name", FILES)
def test_no_file_imports_a_test(name: str) -> None:
    """Models that tests share are in tests/models, assertions and oracles in tests/tools."""
    tests = {other.removesuffix(".py").replace("/", ".") for other in FILES if Path(other).name.startswith("test_")}
    assert imported(FILES[name]) & tests == set()


VISIBLE = ("assert_", "require_", "check_", "raises", "warns", "fail")


def visible(test: ast.FunctionDef) -> bool:
    """Return whether a reader sees what a test asserts: by itself, or by a helper whose name says that it does."""
    for node in ast.walk(test):
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if name.startswith(VISIBLE):
                return True
    return False


@pytest.mark.parametrize("name", FILES)
def test_every_test_asserts_something_that_is_seen(name: str) -> None:
    nodes = ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8")))
    tests = [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    assert [test.name for test in tests if not visible(test)] == []


@pytest.mark.parametrize("name", FILES)
def test_no_test_measures_time(name: str) -> None:
    """How long something takes depends on what else the machine does."""
    assert not imported(FILES[name]) & {"time", "timeit"}
