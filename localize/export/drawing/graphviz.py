"""Draw pictures with Graphviz: its program ``dot`` turns a graph into SVG, PNG or PDF."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from localize.export.drawing.dot import write_dot
from localize.export.request import Request
from localize.runtime.exporting import ExportError

_SVG = "http://www.w3.org/2000/svg"
TIMEOUT = 300
"""Seconds after which ``dot`` is stopped."""


def write_svg(request: Request) -> bytes:
    """Draw an SVG picture with tooltips, for any browser.

    Every line of text carries the width that Graphviz reserved for it, so that a browser with another font squeezes it
    into its box.
    """
    drawn, layout = _rendered(write_dot(request), "svg", "json")
    widths = {
        (text.replace("\N{NO-BREAK SPACE}", " "), x, -y): width for text, x, y, width in _texts(json.loads(layout))
    }
    picture = ElementTree.fromstring(drawn)
    for element in picture.iter(f"{{{_SVG}}}text"):
        # Graphviz writes no-break spaces where several spaces follow each other.
        text = (element.text or "").replace("\N{NO-BREAK SPACE}", " ")
        key = (text, float(element.get("x", 0)), float(element.get("y", 0)))
        if widths.get(key):
            element.set("textLength", f"{widths[key]:g}")
            element.set("lengthAdjust", "spacingAndGlyphs")
    for prefix, address in (("", _SVG), ("xlink", "http://www.w3.org/1999/xlink")):
        ElementTree.register_namespace(prefix, address)
    written: bytes = ElementTree.tostring(picture, encoding="utf-8", xml_declaration=True)
    return written + b"\n"


def _texts(layout: Mapping[str, Any]) -> Iterator[tuple[str, float, float, float]]:
    """Yield every line of text in a layout, with its place and its width, in points."""
    for item in (layout, *layout.get("objects", ()), *layout.get("edges", ())):
        for step in item.get("_ldraw_", ()):
            if step["op"] == "T":
                yield step["text"], *step["pt"], step["width"]


def write_png(request: Request) -> bytes:
    """Draw a PNG picture."""
    return _rendered(write_dot(request), "png")[0]


def write_pdf(request: Request) -> bytes:
    """Draw a PDF picture, for print."""
    return _rendered(write_dot(request), "pdf")[0]


def _rendered(graph: bytes, *kinds: str) -> list[bytes]:
    """Run ``dot`` once, and return its output in each of several forms of the same layout.

    Args:
        graph: The dot source.
        kinds: Names of output formats of ``dot``.

    Raises:
        ExportError: Graphviz is not installed, or ``dot`` fails or takes longer than ``TIMEOUT``.
    """
    program = shutil.which("dot")
    if program is None:
        raise ExportError(
            f"{kinds[0]} is drawn by Graphviz, and its program dot is not there",
            remedy="Install it (apt install graphviz, brew install graphviz, conda install graphviz, or from "
            "graphviz.org), or write html or dot, which need no program",
        )
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / kind for kind in kinds]
        outputs = [word for kind, file in zip(kinds, files, strict=True) for word in (f"-T{kind}", f"-o{file}")]
        try:
            done = subprocess.run([program, *outputs], input=graph, capture_output=True, timeout=TIMEOUT, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ExportError(f"{program} did not draw the graph", why=str(error), remedy=_SMALLER) from error
        if done.returncode != 0 or not all(file.exists() for file in files):
            why = done.stderr.decode("utf-8", "replace").strip() or f"exit code {done.returncode}"
            raise ExportError(f"{program} did not draw the graph", why=why, remedy=_SMALLER)
        return [file.read_bytes() for file in files]


_SMALLER = "Draw less (fold, one module, another view), or write dot and look at the graph"
