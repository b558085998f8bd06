"""A picture of a run: accuracy and losses over the epochs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localize.files import atomic_write
from localize.training.metrics import EpochMetrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAIN_COLOUR, TEST_COLOUR = "#7a7a7a", "#c2410c"
MODULE_COLOURS = "viridis"
RESOLUTION = 130  # dots per inch
MARGIN = 3  # per cent of accuracy above and below the curves
LOG_RATIO = 10  # losses that differ more than this are drawn on a logarithmic axis
MARKED_EPOCHS = 25  # short runs get a dot per epoch: a single epoch gives no line


def draw_curves(history: Sequence[EpochMetrics], path: str | Path, title: str) -> None:
    """Write a PNG: accuracy on the left; on the right the losses, those of local modules coloured by depth.

    Args:
        history: Metrics of at least one epoch.
        path: The file; written whole or not at all.
        title: Title of the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A figure without pyplot has no global state and no window system, and is safe in threads.
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, loss = figure.subplots(1, 2)
    figure.suptitle(title, fontsize=12)
    _draw_accuracy(accuracy, history)
    _draw_losses(figure, loss, history)
    atomic_write(path, lambda temporary: figure.savefig(temporary, dpi=RESOLUTION, format="png"))


def _draw_accuracy(axes: Axes, history: Sequence[EpochMetrics]) -> None:
    train, test = ([100 * getattr(m, name) for m in history] for name in ("train_accuracy", "test_accuracy"))
    _line(axes, history, train, color=TRAIN_COLOUR, label=f"training {train[-1]:.1f} %")
    _line(axes, history, test, color=TEST_COLOUR, label=f"test {test[-1]:.1f} %")
    axes.set_ylim(max(0, min(train + test) - MARGIN), min(100 + 1, max(train + test) + MARGIN))
    _finish(axes, history, "Accuracy, %")


def _draw_losses(figure: Figure, axes: Axes, history: Sequence[EpochMetrics]) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    *inner, _ = history[-1].module_losses  # the last module's loss is the training loss
    if inner:
        scale, colours = Normalize(1, max(2, len(inner))), colormaps[MODULE_COLOURS]
        for index, name in enumerate(inner, 1):
            losses = [metrics.module_losses[name] for metrics in history]
            _line(axes, history, losses, color=colours(scale(index)), linewidth=1)
        bar = figure.colorbar(ScalarMappable(scale, colours), ax=axes, pad=0.02)
        bar.set_label("training, local module")
        bar.locator = MaxNLocator(integer=True)
        bar.update_ticks()
    label = "training, last module" if inner else "training"
    _line(axes, history, [metrics.train_loss for metrics in history], color=TRAIN_COLOUR, linewidth=2, label=label)
    _line(axes, history, [metrics.test_loss for metrics in history], color=TEST_COLOUR, linewidth=2, label="test")
    _scale_losses(axes, history)
    _finish(axes, history, "Loss")


def _scale_losses(axes: Axes, history: Sequence[EpochMetrics]) -> None:
    """Use a logarithmic axis where losses differ much: test losses of the first epochs may be far above the rest."""
    from matplotlib.ticker import NullFormatter

    losses = [loss for m in history for loss in (m.train_loss, m.test_loss, *m.module_losses.values())]
    if 0 < LOG_RATIO * min(losses) < max(losses):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)


def _line(axes: Axes, history: Sequence[EpochMetrics], values: Sequence[float], **style: Any) -> None:
    marker = "o" if len(history) <= MARKED_EPOCHS else None
    axes.plot([metrics.epoch for metrics in history], values, marker=marker, markersize=3, **style)


def _finish(axes: Axes, history: Sequence[EpochMetrics], title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    margin = 0.02 * len(history) + 0.2
    axes.set_xlim(1 - margin, history[-1].epoch + margin)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=10)
    # Next to the title, where no curve can cross it.
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=9, borderaxespad=0.1)
