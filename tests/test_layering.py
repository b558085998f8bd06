"""Imports go down only: the floors of docs/architecture.md, read off the source of every module."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parent.parent

# Ground floor first. A package stands for all that is in it, unless a longer name is on a floor of its own.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("passes",),
    (
        "localize.version",
        "localize.losses",
        "localize.term_losses",
        "localize.diversity",
        "localize.fused",
        "localize.models",
    ),
    (
        "localize.prediction",
        "localize.pooling",
        "localize.dense",
        "localize.heads",
        "localize.plan",
        "localize.exporting",
        "localize.records",
        "localize.sizes",
        "localize.tables",
        "localize.fields",
        "localize.forecast",
        "localize.budget",
        "localize.merge",
        "localize.supervision",
        "localize.recompute",
        "localize.grouping",
    ),
    ("localize.methods",),
    ("localize.local_module",),
    ("localize.runtime.errors",),
    ("localize.runtime.options", "localize.runtime.regions"),
    ("localize.runtime.compiled", "localize.runtime.streams"),
    ("localize.runtime.schedule",),
    ("localize.inference", "localize.cascade", "localize.explain"),
    ("localize.local_graph",),
    ("localize.emit",),
    ("localize.planning",),
    (
        "localize.runtime.errors",
        "localize.runtime.optimizers",
        "localize.runtime.recipe",
        "localize.runtime.memory",
        "localize.runtime.step_settings",
        "localize.runtime.timeline",
        "localize.runtime.update",
        "localize.runtime.dry_run",
        "localize.runtime.forecast",
        "localize.runtime.alike",
        "localize.runtime.composed",
        "localize.runtime.course",
        "localize.runtime.planner",
        "localize.runtime.checkpoint",
    ),
    ("localize.export",),
    ("localize.api",),
    ("localize.obstacles",),
    ("localize",),
    ("localize.runtime",),
    ("localize.bench",),
    (
        "localize.cli",
        "localize._flags",
        "localize._train",
        "localize._check",
        "localize._memory",
        "localize._sweep",
        "localize._bench",
        "localize._updates",
        "localize._options",
        "localize._names",
        "localize._complete",
        "localize._help",
        "localize._running",
        "localize._built",
        "localize._terminal",
        "localize._inspect",
        "localize._inspect_table",
        "localize._inspect_module",
        "localize._export",
        "localize._weights",
        "localize._demo",
        "localize._display",
    ),
)

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


def _floor(name: str) -> int:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        # `localize` itself is the front door alone; what is in the package has to be listed.
        if prefix == "localize" and length < len(parts):
            break
        for level, packages in enumerate(FLOORS):
            if prefix in packages:
                return level
    pytest.fail(f"{name} is on no floor: add it to FLOORS and to docs/architecture.md")


def _own(name: str) -> set[str]:
    return {target for target in _imports(name) if target in MODULES and target != name}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_down_only(name: str) -> None:
    upward = {target for target in _own(name) if _floor(target) > _floor(name)}
    assert upward == set()


def test_imports_have_no_cycle() -> None:
    graph = nx.DiGraph((name, target) for name in MODULES for target in _own(name))
    assert list(nx.simple_cycles(graph)) == []


@pytest.mark.parametrize("package", sorted(OUTSIDE))
def test_what_a_package_knows_of_the_world(package: str) -> None:
    members = [name for name in MODULES if name == package or name.startswith(f"{package}.")]
    tops = {target.partition(".")[0] for name in members for target in _imports(name)}
    assert tops - set(sys.stdlib_module_names) - {"passes", "localize"} <= OUTSIDE[package]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_only_the_command_line_prints(name: str) -> None:
    if _floor(name) == len(FLOORS) - 1:
        return
    calls = (
        node for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
    )
    printing = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert printing == []
