"""One word, one thing: no name twice in the packages, rooms of a size to look over, and plain English in docstrings."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tools.paths import ROOT

FILES = {
    path.relative_to(ROOT).as_posix(): path
    for package in ("passes", "localize")
    for path in sorted((ROOT / package).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
ROOMS = sorted({str(Path(name).parent) for name in FILES})

REPEATED_FILES = {"__init__", "__main__", "options", "rule"}
"""Files that several rooms may have: methods in rooms of their own have a rule and its options."""
REPEATED_CLASSES = {"Options"}
LARGE_ROOMS = {"localize/cli", "localize/export/python"}
"""Rooms with a file for each command, and with one for each kind of code that is written."""
LARGEST_ROOM = 14


def twins(places: Iterator[tuple[str, str]]) -> dict[str, list[str]]:
    """Names that stand in more than one place."""
    by_name = defaultdict(list)
    for name, place in places:
        by_name[name].append(place)
    return {name: found for name, found in by_name.items() if len(found) > 1}


def test_no_class_name_stands_for_two_things() -> None:
    classes = (
        (node.name, name)
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name not in REPEATED_CLASSES
    )
    assert twins(classes) == {}


def test_no_file_name_stands_for_two_things() -> None:
    assert twins((Path(name).stem, name) for name in FILES if Path(name).stem not in REPEATED_FILES) == {}


def test_no_private_file_stands_at_the_top() -> None:
    assert [name for name in FILES if re.fullmatch(r"localize/_(?!_).*", name)] == []


@pytest.mark.parametrize("room", [room for room in ROOMS if room not in LARGE_ROOMS])
def test_a_room_can_be_looked_over(room: str) -> None:
    files = [name for name in FILES if str(Path(name).parent) == room and Path(name).stem != "__init__"]
    assert len(files) <= LARGEST_ROOM


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_is_for_and_what_it_may_import(room: str) -> None:
    """Its docstring has at least two sentences."""
    docstring = ast.get_docstring(TREES[f"{room}/__init__.py"]) or ""
    assert len(re.findall(r"[.!](?=\s|$)", docstring)) >= 2


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_docstrings_of_functions_open_with_a_verb() -> None:
    """Ruff's D401 sees most; these openings of noun clauses it lets pass, and does not look for in properties."""
    opened = {
        f"{name}:{f.lineno}": (ast.get_docstring(f) or "").split() for name in FILES for f in functions(TREES[name])
    }
    clauses = ("What", "Whether", "Of", "How")
    assert {place: words[0] for place, words in opened.items() if words and words[0] in clauses} == {}


def texts(tree: ast.Module) -> Iterator[str]:
    """Every text of a file but docstrings: of formatted ones, the parts that stand in the source."""
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def test_errors_say_what_is_wanted() -> None:
    """Errors read "NAME must be X, got Y", not "Y is no X"; "there is no X" is plain enough."""
    said = {
        name: [text for text in texts(tree) if re.search(r"(?<!there )\b(is|are) (no|none)\b", text)]
        for name, tree in TREES.items()
    }
    assert {name: found for name, found in said.items() if found} == {}


def test_any_is_rare() -> None:
    """Fewer than 15 uses of the type in 1,000 lines: it says nothing to a reader, and hides faults from the checker."""
    sources = [path.read_text(encoding="utf-8") for path in FILES.values()]
    uses = sum(len(re.findall(r"\bAny\b", source)) for source in sources)
    assert 1000 * uses < 15 * sum(len(source.splitlines()) for source in sources)
