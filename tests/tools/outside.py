"""Programs that are no part of this project, and that read what it writes."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

import pytest

needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")

Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in points."""


def laid_out(graph: bytes) -> dict[str, Any]:
    """Lay out a graph with Graphviz, and return the place of every line of text."""
    done = subprocess.run(["dot", "-Tjson"], input=graph, capture_output=True, check=True)
    assert done.stderr == b""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@dataclass(frozen=True)
class Line:
    """A line of text in a picture."""

    text: str
    box: Box
    node: str | None
    """The node that it is written in; None for titles and labels of arrows."""


def lines_of(layout: dict[str, Any]) -> list[Line]:
    """Every line of text in a picture, with its box."""
    found = []
    for item in (layout, *layout.get("objects", ()), *layout.get("edges", ())):
        node = item["name"] if "width" in item else None
        for key in ("_ldraw_", "_hldraw_", "_tldraw_"):
            size = 10.0
            for step in item.get(key, ()):
                if step["op"] == "F":
                    size = step["size"]
                elif step["op"] == "T":
                    (x, y), width = step["pt"], step["width"]
                    left = x - {"l": 0.0, "c": width / 2, "r": width}[step["align"]]
                    found.append(Line(step["text"], (left, y - 0.2 * size, left + width, y + 0.7 * size), node))
    return found


def boxes(layout: dict[str, Any]) -> dict[str, Box]:
    """Every node's box, by name."""
    found = {}
    for node in layout.get("objects", ()):
        if "pos" in node and "width" in node:
            x, y = map(float, node["pos"].split(","))
            width, height = 72 * float(node["width"]), 72 * float(node["height"])
            found[node["name"]] = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return found


def overlap(a: Box, b: Box, slack: float = 0.5) -> bool:
    """Whether two boxes share more than a hair."""
    return a[0] < b[2] - slack and b[0] < a[2] - slack and a[1] < b[3] - slack and b[1] < a[3] - slack


def inside(inner: Box, outer: Box, slack: float = 0.5) -> bool:
    """Whether one box lies within another."""
    return (
        outer[0] - slack <= inner[0]
        and outer[1] - slack <= inner[1]
        and inner[2] <= outer[2] + slack
        and inner[3] <= outer[3] + slack
    )


def unfit(layout: dict[str, Any]) -> list[Any]:
    """Return what looks wrong: text cut off, outside its box or over other text; boxes over each other."""
    left, bottom, right, top = map(float, layout["bb"].split(","))
    lines, places = lines_of(layout), boxes(layout)
    found: list[Any] = [line for line in lines if not inside(line.box, (left, bottom, right, top))]
    found += [line for line in lines if line.node and not inside(line.box, places[line.node])]
    found += _clashes({f"{i} {line.text}": line.box for i, line in enumerate(lines)})
    loose = {line.text: line.box for line in lines if line.node is None}
    return found + _clashes({**places, **loose})


def _clashes(found: dict[str, Box]) -> list[tuple[str, str]]:
    named = sorted(found.items(), key=lambda item: item[1][1])
    clashes = []
    for i, (a, x) in enumerate(named):
        for b, y in named[i + 1 :]:
            if y[1] >= x[3]:  # it begins above this one's top, and so do all after it
                break
            if overlap(x, y):
                clashes.append((a, b))
    return clashes
