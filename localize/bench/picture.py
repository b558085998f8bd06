"""The picture of a benchmark: step time against memory, one point per contender, and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from localize.bench.report import BP, CHECKPOINT, Entry, Report, memory_of, seconds_of
from localize.bench.table import title
from localize.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RIVAL_COLOUR, FRONT_COLOUR = "#7a7a7a", "#1d6fb8"
RIVAL_MARKERS = {BP: "s", CHECKPOINT: "D"}
LOCAL_MARKERS = "ov^<>pPX*h"
RESOLUTION = 130  # dots per inch
MARGIN = 0.08
"""Share of the axes' length that is left free beyond the outermost points."""


def draw(report: Report, path: str | Path) -> None:
    """Write the picture as a PNG; the nearer a point is to the lower left corner, the better.

    Args:
        report: A benchmark in which at least one contender was timed.
        path: The file. It is written whole or not at all.
    """
    figure = figure_of(report)
    atomic_write(path, lambda temporary: figure.savefig(temporary, dpi=RESOLUTION, format="png"))


def figure_of(report: Report) -> Figure:
    """Return the picture, not yet written to a file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    timed = [entry for entry in report.entries if entry.timing is not None]
    # A figure without pyplot has no global state and no window system, and is safe in threads.
    figure = Figure(figsize=(8.5, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _draw_points(axes, timed)
    memory, times = zip(*map(_position, report.front()), strict=True)
    # Steps and not straight lines: between two points of the front nothing was measured.
    axes.step(memory, times, where="post", color=FRONT_COLOUR, linewidth=1.5, label="Pareto front", zorder=2)
    axes.margins(MARGIN)
    measured = any(entry.allocated_bytes is not None for entry in timed)
    axes.set_xlabel(f"peak memory of a step, MB ({'allocated' if measured else 'counted'})")
    axes.set_ylabel("step time, ms")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title(report), loc="left", fontsize=11)
    # Names stand in a legend at the side: next to points that lie close together they would cover each other.
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=9)
    return figure


def _position(entry: Entry) -> tuple[float, float]:
    """Return megabytes and milliseconds."""
    return memory_of(entry) / 1e6, 1000 * seconds_of(entry)


def _draw_points(axes: Axes, entries: Sequence[Entry]) -> None:
    """Draw a marker per contender, with half of the interquartile range up and down as its error bar."""
    from matplotlib import colormaps

    colours = colormaps["tab10"].colors  # type: ignore[attr-defined]
    local = 0
    for entry in sorted(entries, key=memory_of):
        memory, time = _position(entry)
        half = 500 * entry.timing.spread if entry.timing else 0.0
        if entry.method in RIVAL_MARKERS:
            colour, marker = RIVAL_COLOUR, RIVAL_MARKERS[entry.method]
        else:
            # A marker of its own as well as a colour, for readers who do not see colours apart.
            colour, marker = colours[local % len(colours)], LOCAL_MARKERS[local % len(LOCAL_MARKERS)]
            local += 1
        axes.errorbar(
            memory, time, yerr=half, fmt=marker, color=colour, markersize=7, capsize=3, label=entry.label, zorder=3
        )
