"""The picture of a benchmark: time against memory, a point a method, and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from localize.bench.labels import Line, Point, place_labels
from localize.bench.report import BP, CHECKPOINT, Entry, Report, memory_of, seconds_of
from localize.bench.table import title
from localize.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOCAL_COLOUR, RIVAL_COLOUR, FRONT_COLOUR = "#c2410c", "#7a7a7a", "#1d6fb8"
RESOLUTION = 130  # dots per inch
ROOM = 0.18
"""Share of the axes' length that is left beyond the outermost points, for their labels."""


def draw(report: Report, path: str | Path) -> None:
    """Writes a PNG: peak memory to the right, step time upwards; what is nearer to the lower left is better.

    Args:
        report: At least one contender was timed.
        path: Where to write it, whole or not at all.
    """
    figure = figure_of(report)
    atomic_write(path, lambda temporary: figure.savefig(temporary, dpi=RESOLUTION, format="png"))


def figure_of(report: Report) -> Figure:
    """The picture, not yet written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    timed = [entry for entry in report.entries if entry.timing is not None]
    # A figure of its own instead of pyplot: no global state, no window system, safe in threads.
    figure = Figure(figsize=(8.5, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _points(axes, timed)
    corners = _front(axes, report.front())
    _frame(axes, timed, measured=any(entry.allocated_bytes is not None for entry in timed))
    axes.set_title(title(report), loc="left", fontsize=11)
    axes.legend(loc="upper right", bbox_to_anchor=(1, -0.1), ncols=3, frameon=False, fontsize=9)
    figure.draw_without_rendering()  # the layout is known from here on, and labels can be told where they fit
    place_labels(axes, [Point(*_place(entry), entry.label) for entry in timed], [*corners, *map(_bar, timed)])
    return figure


def _place(entry: Entry) -> tuple[float, float]:
    """Megabytes and milliseconds."""
    return memory_of(entry) / 1e6, 1000 * seconds_of(entry)


def _bar(entry: Entry) -> Line:
    """The error bar: half of the interquartile range up and down."""
    memory, time = _place(entry)
    half = 500 * entry.timing.spread if entry.timing else 0.0
    return memory, time - half, memory, time + half


def _points(axes: Axes, entries: Sequence[Entry]) -> None:
    for rival, colour, name in ((False, LOCAL_COLOUR, "local losses"), (True, RIVAL_COLOUR, "one loss")):
        chosen = [entry for entry in entries if (entry.method in (BP, CHECKPOINT)) == rival]
        if chosen:
            memory, times = zip(*map(_place, chosen), strict=True)
            halves = [500 * entry.timing.spread for entry in chosen if entry.timing]
            axes.errorbar(memory, times, yerr=halves, fmt="o", color=colour, capsize=3, label=name, zorder=3)


def _front(axes: Axes, front: Sequence[Entry]) -> list[Line]:
    """Draws steps, not straight lines: between two points of the front nothing was measured. Returns what it drew."""
    places = [_place(entry) for entry in front]
    memory, times = zip(*places, strict=True)
    axes.step(memory, times, where="post", color=FRONT_COLOUR, linewidth=1.5, label="Pareto front", zorder=2)
    level = [(x0, y0, x1, y0) for (x0, y0), (x1, _) in pairwise(places)]
    upright = [(x1, y0, x1, y1) for (_, y0), (x1, y1) in pairwise(places)]
    return level + upright


def _frame(axes: Axes, entries: Sequence[Entry], *, measured: bool) -> None:
    memory, times = zip(*map(_place, entries), strict=True)
    for values, limit in ((memory, axes.set_xlim), (times, axes.set_ylim)):
        room = ROOM * ((max(values) - min(values)) or max(values))
        limit(max(0, min(values) - room), max(values) + room)
    axes.set_xlabel(f"peak memory of a step, MB ({'allocated' if measured else 'counted'})")
    axes.set_ylabel("step time, ms")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
