"""Names beside the points of a picture, placed so that they cover nothing and are not cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

FONT_SIZE = 9
DISTANCES = (8, 20, 34, 50, 70)
"""Points between a marker and its name: the nearest at which the name runs into nothing is taken."""
DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
HORIZONTAL = {-1: "right", 0: "center", 1: "left"}
VERTICAL = {-1: "top", 0: "center", 1: "bottom"}
MARKER = 5
"""Points from a marker's centre to its edge."""


Line = tuple[float, float, float, float]


class Point(NamedTuple):
    """Where a name belongs, in the units of the axes."""

    x: float
    y: float
    name: str


def place_labels(axes: Axes, points: Sequence[Point], lines: Sequence[Line] = ()) -> None:
    """Writes each name at the first place of many that covers no marker, no line, no other name, inside the axes.

    Where there is none, at the place that covers least. To be called last: the axes' limits and layout must be known.

    Args:
        axes: Where the points are drawn.
        points: What to name.
        lines: Upright or level ones that are drawn too, as x and y of both ends.
    """
    markers = [_box(axes, (point.x, point.y, point.x, point.y), MARKER) for point in points]
    taken = [_box(axes, line, 1) for line in lines]
    for index, point in enumerate(points):
        obstacles = [*taken, *markers[:index], *markers[index + 1 :]]
        best: tuple[float, int, tuple[int, int]] | None = None
        for distance in DISTANCES:
            for direction in DIRECTIONS:
                trial = _write(axes, point, distance, direction)
                cost = _cost(_extent(trial), obstacles, axes.bbox)
                trial.remove()
                if best is None or cost < best[0]:
                    best = cost, distance, direction
        assert best is not None, "there is no place to try"
        taken.append(_extent(_write(axes, point, *best[1:])))


def _write(axes: Axes, point: Point, distance: int, direction: tuple[int, int]) -> Annotation:
    right, up = direction
    line = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.7, "shrinkB": MARKER, "shrinkA": 0}
    return axes.annotate(
        point.name,
        (point.x, point.y),
        (distance * right, distance * up),
        textcoords="offset points",
        ha=HORIZONTAL[right],
        va=VERTICAL[up],
        fontsize=FONT_SIZE,
        arrowprops=line if distance > DISTANCES[0] else None,
    )


def _extent(text: Annotation) -> Bbox:
    """Of the words alone: a line to the marker covers little."""
    from matplotlib.text import Text

    text.get_window_extent()  # an annotation finds its place when it is asked for its own extent
    return Text.get_window_extent(text)


def _box(axes: Axes, line: Line, around: float) -> Bbox:
    """Pixels that a line covers, and ``around`` points beside it."""
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None, "the axes are in no figure"
    (x0, y0), (x1, y1) = axes.transData.transform([line[:2], line[2:]])
    margin = around * figure.dpi / 72
    return Bbox.from_extents(min(x0, x1) - margin, min(y0, y1) - margin, max(x0, x1) + margin, max(y0, y1) + margin)


def _cost(box: Bbox, obstacles: Sequence[Bbox], inside: Bbox) -> float:
    """Pixels of the name that lie on something, or outside."""
    from matplotlib.transforms import Bbox

    covered = sum(_area(Bbox.intersection(box, other)) for other in obstacles)
    # Rounded: places that cover nothing are all alike, and the first of them is taken.
    return round(covered + _area(box) - _area(Bbox.intersection(box, inside)))


def _area(box: Bbox | None) -> float:
    return 0.0 if box is None else float(box.width * box.height)
