"""A benchmark as text: a markdown page, and a table for the terminal."""

from __future__ import annotations

from localize.bench.report import Entry, Report
from localize.text import markdown_table, text_table

LEGEND = (
    "Peak memory: live tensors of a training step with SGD and Nesterov momentum, counted on fake tensors. Step time: "
    "forward, backward and update, the median of the rounds and their interquartile range; the methods took turns in "
    "one run, in an order shuffled for each round, and a ratio of times is the median of the rounds' ratios. MACs: "
    "multiply-accumulates at batch 1, of a forward pass as the plan counts them, and of forward and backward as they "
    "ran. FLOP bound: the ratio of the latter to backpropagation's."
)
_UNKNOWN = "-"


def header(report: Report) -> tuple[str, ...]:
    """Return the names of the columns."""
    measured = ("allocated, MB", "reserved, MB") if _on_cuda(report) else ()
    return (
        "method",
        "peak, MB",
        *measured,
        "step, ms",
        "IQR, ms",
        "MACs fwd",
        "MACs step",
        "memory/BP",
        "memory/ckpt",
        "time/BP",
        "time/ckpt",
        "FLOP bound",
        "time/bound",
    )


def rows(report: Report) -> list[tuple[str, ...]]:
    """Return a row of cells for each contender."""
    return [_row(report, entry) for entry in report.entries]


def _row(report: Report, entry: Entry) -> tuple[str, ...]:
    ratios, timing = report.ratios(entry), entry.timing
    measured = (_megabytes(entry.allocated_bytes), _megabytes(entry.reserved_bytes)) if _on_cuda(report) else ()
    return (
        entry.label,
        _megabytes(entry.peak_bytes),
        *measured,
        f"{1000 * timing.median:,.1f}" if timing else entry.note or _UNKNOWN,
        f"{1000 * timing.spread:,.1f}" if timing else _UNKNOWN,
        f"{entry.plan_macs / 1e6:,.1f} M",
        f"{entry.step_macs / 1e6:,.1f} M",
        _ratio(ratios.memory_to_bp),
        _ratio(ratios.memory_to_checkpoint),
        _ratio(ratios.time_to_bp),
        _ratio(ratios.time_to_checkpoint),
        _ratio(ratios.macs_to_bp),
        _ratio(ratios.time_to_bound),
    )


def terminal(report: Report) -> str:
    """Return title and table, for a fixed-width font."""
    return f"{title(report)}\n{text_table(header(report), rows(report))}"


def title(report: Report) -> str:
    """Return model, batch, device and types of the run in one line."""
    settings = report.settings
    shape = "x".join(map(str, settings["image_shape"]))
    extras = [settings["amp"]] if settings["amp"] else []
    extras += ["channels last"] if settings["channels_last"] else []
    cpu = settings["device"] == "cpu"
    threads = f", {settings['threads']} thread{'s' if settings['threads'] != 1 else ''}" if cpu else ""
    where = ", ".join([settings["device"] + threads, *extras])
    return f"{report.model}, {shape}, batch {settings['batch_size']}, {where}"


def markdown(report: Report, picture: str | None = None) -> str:
    """Write a page: title, table, picture, the meaning of the columns, and where the figures come from.

    Args:
        report: The figures.
        picture: Name of the picture's file, which is in the same folder as the page; None for no picture.
    """
    names = header(report)
    table = markdown_table(names, rows(report))
    image = f"![time against memory]({picture})\n\n" if picture else ""
    circumstances = "\n".join(f"- {key}: {value}" for key, value in report.environment.items())
    rounds = f"{report.settings['steps']} rounds after {report.settings['warmup']} to warm up"
    return f"# {title(report)}\n\n{table}\n\n{image}{LEGEND}\n\n- rounds: {rounds}\n{circumstances}\n"


def _on_cuda(report: Report) -> bool:
    return any(entry.allocated_bytes is not None for entry in report.entries)


def _megabytes(value: int | None) -> str:
    return _UNKNOWN if value is None else f"{value / 1e6:,.1f}"


def _ratio(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.2f}"
