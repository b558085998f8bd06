"""Benchmarks: ratios, the Pareto front, tables, and a picture whose names can be read."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from localize.bench.picture import figure_of
from localize.bench.report import Entry, Report, pareto
from localize.bench.table import header, markdown, rows, terminal
from localize.bench.timing import Timing

# Reports


def entry(label: str, peak: int, seconds: float | None, **fields: object) -> Entry:
    method = label.split(maxsplit=1)[0]
    timing = None if seconds is None else Timing((seconds, 2 * seconds))
    plain = Entry(
        label=label, method=method, modules=1, params=10, plan_macs=100, fvcore_flops=110, step_macs=300,
        peak_bytes=peak, timing=timing,
    )  # fmt: skip
    return replace(plain, **fields)  # type: ignore[arg-type]


def report(*entries: Entry) -> Report:
    settings = {
        "image_shape": [3, 32, 32], "batch_size": 4, "device": "cpu", "threads": 1, "amp": None,
        "channels_last": False, "steps": 2, "warmup": 1,
    }  # fmt: skip
    return Report(model="a:model", settings=settings, environment={"date": "today"}, entries=entries)


def test_ratios() -> None:
    local = entry("auglocal d=2", 50, 0.3, step_macs=600)
    found = report(local, entry("bp", 200, 0.1), entry("checkpoint", 100, 0.15))
    ratios = found.ratios(local)
    assert (ratios.memory_to_bp, ratios.memory_to_checkpoint) == (0.25, 0.5)
    assert (ratios.time_to_bp, ratios.time_to_checkpoint) == pytest.approx((3.0, 2.0))
    assert (ratios.macs_to_bp, ratios.time_to_bound) == pytest.approx((2.0, 1.5))
    own = found.ratios(found.entries[1])
    assert (own.memory_to_bp, own.time_to_bp, own.macs_to_bp, own.time_to_bound) == (1, 1, 1, 1)


def test_ratios_to_what_took_no_part_are_unknown() -> None:
    alone = report(entry("dgl", 50, 0.3))
    assert set(vars_of(alone)) == {None}
    failed = report(entry("dgl", 50, 0.3), entry("bp", 200, None, note="out of memory"))
    ratios = failed.ratios(failed.entries[0])
    assert (ratios.memory_to_bp, ratios.macs_to_bp, ratios.time_to_bp, ratios.time_to_bound) == (0.25, 1, None, None)


def vars_of(found: Report) -> list[float | None]:
    ratios = found.ratios(found.entries[0])
    return [getattr(ratios, name) for name in ratios.__dataclass_fields__]


def test_allocations_are_compared_with_allocations() -> None:
    measured = entry("dgl", 50, 0.3, allocated_bytes=80, reserved_bytes=100)
    bp = entry("bp", 100, 0.1, allocated_bytes=400, reserved_bytes=500)
    assert report(measured, bp).ratios(measured).memory_to_bp == 0.2
    assert report(measured, entry("bp", 100, 0.1)).ratios(measured).memory_to_bp == 0.5


def test_the_front_is_what_nothing_beats() -> None:
    """Against all pairs, on points drawn at random and with ties."""
    generator = random.Random(0)
    for _ in range(50):
        entries = [entry(f"m{i}", generator.randint(1, 6), float(generator.randint(1, 6))) for i in range(6)]
        pairs = [(e.peak_bytes, e.timing.median if e.timing else 0.0) for e in entries]
        best = {a for a in pairs if not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in pairs)}
        found = [(e.peak_bytes, e.timing.median if e.timing else 0.0) for e in pareto(entries)]
        assert found == sorted(best)


def test_tables_have_a_cell_for_every_column() -> None:
    found = report(entry("auglocal d=2", 50, 0.3), entry("bp", 200, None, note="out of memory"))
    assert {len(row) for row in rows(found)} == {len(header(found))}
    assert "out of memory" in terminal(found)
    assert "| auglocal d=2 | 0.0 | 450.0 | 150.0 |" in markdown(found, "bench.png")
    measured = report(entry("bp", 200_000_000, 0.1, allocated_bytes=300_000_000, reserved_bytes=400_000_000))
    assert rows(measured)[0][1:4] == ("200.0", "300.0", "400.0")
    assert header(measured)[2:4] == ("allocated, MB", "reserved, MB")


# The picture


def test_the_picture_names_every_contender_once() -> None:
    from matplotlib.text import Text

    found = report(
        *[entry(f"auglocal d={i}", 30_000_000 + i, 0.3 + i / 1000) for i in range(12)],
        entry("bp", 60_000_000, 0.1),
        entry("checkpoint", 25_000_000, 0.2),
        entry("dgl", 20_000_000, None, note="out of memory"),
    )
    figure = figure_of(found)
    figure.draw_without_rendering()
    legend = figure.axes[0].get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert sorted(names) == sorted([*(e.label for e in found.entries if e.timing), "Pareto front"])
    boxes = [Text.get_window_extent(text) for text in legend.get_texts()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(figure.bbox.contains(box.x0, box.y0) and figure.bbox.contains(box.x1, box.y1) for box in boxes)
