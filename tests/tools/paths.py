"""Folders of this repository."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent
GOLDEN = TESTS / "golden"
"""Generated code as it should be."""
REFERENCE = TESTS / "reference"
"""Figures of the authors' code."""
