"""What pyproject.toml says is so."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

import localize
from tests.tools.paths import ROOT


@pytest.fixture
def project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent for package in ("localize", "passes") for path in (ROOT / package).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_types_are_published() -> None:
    assert (ROOT / "localize" / "py.typed").is_file()
    assert (ROOT / "passes" / "py.typed").is_file()


def test_version_has_one_source(project: dict[str, Any]) -> None:
    # A source tree that is on the path but not installed has no version.
    assert localize.__version__ in (project["project"]["version"], "0+unknown")
    literal = f'"{project["project"]["version"]}"'
    assert [path for path in (ROOT / "localize").rglob("*.py") if literal in path.read_text(encoding="utf-8")] == []


def test_no_package_index_is_named() -> None:
    for path in (ROOT / "pyproject.toml", ROOT / "Makefile", *(ROOT / ".ci").iterdir()):
        assert "index-url" not in path.read_text(encoding="utf-8"), path
