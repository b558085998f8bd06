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
