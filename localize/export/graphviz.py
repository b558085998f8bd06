"""Pictures by Graphviz: its program ``dot`` reads the graph and gives SVG, PNG or PDF."""

from __future__ import annotations

import shutil
import subprocess
from typing import Literal

from localize.export.dot import dot
from localize.export.request import Request
from localize.exporting import ExportError

TIMEOUT = 300
"""Seconds that ``dot`` may take."""


def svg(request: Request) -> bytes:
    """A picture that any browser shows, with tooltips."""
    return _rendered(dot(request), "svg")


def png(request: Request) -> bytes:
    """A picture of pixels."""
    return _rendered(dot(request), "png")


def pdf(request: Request) -> bytes:
    """A picture for print."""
    return _rendered(dot(request), "pdf")


def _rendered(graph: bytes, kind: Literal["svg", "png", "pdf"]) -> bytes:
    """What ``dot`` makes of a graph.

    Raises:
        ExportError: There is no such program, it fails, or takes too long.
    """
    program = shutil.which("dot")
    if program is None:
        raise ExportError(
            f"{kind} is drawn by Graphviz, and its program dot is not there",
            remedy="Install it (apt install graphviz, brew install graphviz, conda install graphviz, or from "
            "graphviz.org), or write html or dot, which need no program",
        )
    try:
        done = subprocess.run([program, f"-T{kind}"], input=graph, capture_output=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExportError(f"{program} did not draw the graph", why=str(error), remedy=_SMALLER) from error
    if done.returncode != 0 or not done.stdout:
        why = done.stderr.decode("utf-8", "replace").strip() or f"exit code {done.returncode}"
        raise ExportError(f"{program} did not draw the graph", why=why, remedy=_SMALLER)
    return done.stdout


_SMALLER = "Draw less (fold, one module, another view), or write dot and look at the graph"
