"""Imports follow the spine: what each room may import, read off the source of every module, functions included."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

from tests.tools.paths import ROOT

SPINE = (
    ("passes.errors",),
    ("passes.structure",),
    ("passes.ir",),
    ("passes.common",),
    ("passes.layers",),
    ("passes.shapes", "passes.codegen"),
    ("passes.capture", "passes.partition"),
    ("passes.adapt", "passes.split"),
    ("passes.verify",),
    ("passes.pipeline",),
    ("localize.text", "localize.files", "localize.version", "localize.models"),
    ("localize.plan",),
    ("localize.methods",),
    ("localize.runtime",),
    ("localize.compiler",),
    ("localize.memory",),
    ("localize.api",),
    ("localize.obstacles",),
    ("localize.training",),
    ("localize.export", "localize.bench"),
    ("localize",),
    ("localize.cli",),
)
"""A room sees itself and the rows above its own; rooms of one row do not see each other."""

LONGEST_CHAIN = 18
"""Modules in the longest chain of imports."""

OUTSIDE = {"passes": {"torch", "networkx"}, "localize.methods": {"torch"}}
"""What a package may import from outside, beside the standard library."""


def _modules() -> dict[str, Path]:
    found = {}
    for package in ("passes", "localize"):
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = path
    return found


MODULES = _modules()


def _imports(name: str) -> Iterator[str]:
    """Names of the modules that ``name`` imports, anywhere in its source."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                # `from localize import localize` is the function of the package: no module has that name.
                yield full if full in MODULES else node.module


def _row(name: str) -> tuple[int, str]:
    """Return the number of the row that a module belongs to, and the room in it."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        for row, rooms in enumerate(SPINE):
            # `localize` itself is the front door alone; what is in the package has to be listed.
            if prefix in rooms and (prefix != "localize" or length == len(parts)):
                return row, prefix
    pytest.fail(f"{name} is in no room: add it to SPINE and to docs/architecture.md")


def _own(name: str) -> set[str]:
    return {target for target in _imports(name) if target in MODULES and target not in (name, "passes")}


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"passes"}))
def test_imports_follow_the_spine(name: str) -> None:
    row, room = _row(name)
    against = set()
    for target in _own(name):
        other, its = _row(target)
        if other > row or (other == row and its != room):
            against.add(target)
    assert against == set()


def test_one_door_alone_is_opened_by_name() -> None:
    """What is imported by its name would not be seen above: lazy names of the package and of methods, and exports."""
    opened = [name for name, path in MODULES.items() if "import_module(" in path.read_text(encoding="utf-8")]
    assert sorted(opened) == ["localize", "localize.bench.zoo", "localize.methods", "localize.runtime.exporting"]


def test_imports_have_no_cycle() -> None:
    graph = nx.DiGraph((name, target) for name in MODULES for target in _own(name))
    assert list(nx.simple_cycles(graph)) == []


def test_the_longest_chain_of_imports_is_short() -> None:
    graph = nx.DiGraph((name, target) for name in MODULES for target in _own(name))
    chain = nx.dag_longest_path(graph)
    assert len(chain) <= LONGEST_CHAIN, " > ".join(chain)


@pytest.mark.parametrize("package", sorted(OUTSIDE))
def test_what_a_package_knows_of_the_world(package: str) -> None:
    members = [name for name in MODULES if name == package or name.startswith(f"{package}.")]
    tops = {target.partition(".")[0] for name in members for target in _imports(name)}
    assert tops - set(sys.stdlib_module_names) - {"passes", "localize"} <= OUTSIDE[package]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_the_command_line_prints(name: str) -> None:
    if name.startswith("localize.cli"):
        return
    calls = (
        node for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
    )
    printing = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert printing == []
