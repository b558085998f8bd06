"""The file of a sweep, to which later runs add, and the report that is written from it."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from localize.bench.sweep.record import LARGE_SHARE, ExamineSettings, ModelRecord, SweepError
from localize.text import markdown_table
from localize.version import own_version

NAMES_SHOWN = 3
"""Most names of submodules or parameters that a list shows for one model."""


class Log:
    """A file of records as JSON lines. Each run that adds to it first writes a line of its circumstances.

    A later record of a model replaces an earlier one. A last line that an interrupted write left incomplete is dropped.

    Args:
        path: The file; it need not exist.
        restart: Ignore the content of the file; :meth:`begin` empties it.

    Raises:
        SweepError: The file was not written by a sweep.
        OSError: The file cannot be read.
    """

    def __init__(self, path: Path, *, restart: bool = False) -> None:
        self.path = path
        self.runs: list[dict[str, Any]] = []
        """Settings, versions, date and machine of each run that wrote to the file."""
        self.records: dict[str, ModelRecord] = {}
        """The last record of each model, by name."""
        text = path.read_text(encoding="utf-8") if path.exists() and not restart else ""
        self._whole = text.rpartition("\n")[0] + "\n" if "\n" in text else ""
        for number, line in enumerate(self._whole.splitlines(), 1):
            self._read(number, line)

    def _read(self, number: int, line: str) -> None:
        try:
            values = json.loads(line)
            if "run" in values:
                self.runs.append(dict(values["run"]))
            else:
                record = ModelRecord.from_dict(values)
                self.records[record.name] = record
        except (ValueError, TypeError) as error:
            raise SweepError(
                f"{self.path} was not written by a sweep",
                why=f"line {number}: {error}",
                remedy="Give another --out, or overwrite it with --force",
            ) from error

    def begin(self, settings: ExamineSettings, **further: Any) -> None:
        """Write the circumstances of a run: settings, versions, date, and the further values given.

        Raises:
            SweepError: An earlier run in this file had other settings.
        """
        ours = json.loads(json.dumps(dataclasses.asdict(settings)))
        for run in self.runs:
            for key, value in ours.items():
                if run.get("settings", {}).get(key) != value:
                    raise SweepError(
                        f"{key} is {run.get('settings', {}).get(key)} in {self.path} and {value} here",
                        remedy="Give another --out, or overwrite it with --force",
                    )
        run = {"date": str(datetime.date.today()), "settings": ours, "versions": _versions(), "machine": _machine()}
        self.runs.append({**run, **further})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        os.truncate(self.path, len(self._whole.encode()))
        self._write({"run": self.runs[-1]})

    def append(self, record: ModelRecord) -> None:
        """Add a record; it is on disk when the call returns."""
        self.records[record.name] = record
        self._write(dataclasses.asdict(record))

    def _write(self, values: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def _versions() -> dict[str, str]:
    versions = {"localize": own_version(), "python": platform.python_version()}
    for package in ("torch", "timm", "torchvision"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _machine() -> str:
    return f"{os.cpu_count()} cores ({platform.machine()})"


def report(runs: Sequence[dict[str, Any]], records: Iterable[ModelRecord]) -> str:
    """Write a sweep as markdown: a table of families for each library, then lists of models that need attention.

    Args:
        runs: :attr:`Log.runs`.
        records: The records, one per model.
    """
    ordered = sorted(records, key=lambda record: (_library(record), record.family, record.name))
    sections = ["# Coverage", "\n".join(dict.fromkeys(_circumstances(run) for run in runs)), _totals(ordered)]
    for library in dict.fromkeys(map(_library, ordered)):
        members = [record for record in ordered if _library(record) == library]
        sections.append(f"## {library}: {len(members):,} models")
        sections.append(family_table(members))
    sections += _lists(ordered)
    return "\n\n".join(section for section in sections if section) + "\n"


def _library(record: ModelRecord) -> str:
    return record.name.partition(":")[0]


def _circumstances(run: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.get("versions", {}).items())
    given = {key: value for key, value in run.get("settings", {}).items() if value is not None}
    settings = ", ".join(f"{key}={value}" for key, value in given.items())
    command = run.get("command", "localize-cli sweep")
    return f"`{command}`, {run.get('date')}; {settings}; {versions}; {run.get('machine')}.  "


def _totals(records: Sequence[ModelRecord]) -> str:
    count = {status: sum(r.status == status for r in records) for status in ("refused", "failed", "timeout")}
    good = [r for r in records if r.status == "localized"]
    others = "".join(f", {number:,} {status}" for status, number in count.items() if number)
    lines = [f"{len(records):,} models examined: {len(good):,} localized{others}."]
    if good:
        slowest, largest = max(good, key=lambda r: r.seconds), max(good, key=lambda r: r.peak_mb)
        median = statistics.median(r.seconds for r in good)
        lines += [
            "Localized: captured, partitioned, given auxiliary networks, and run for one training step on fake",
            "tensors, in which each local loss reached exactly the parameters of its own module.",
            f"Seconds for all of it: {median:.1f} median, {slowest.seconds:.1f} at most ({slowest.name});",
            f"memory of the process: {largest.peak_mb:,} MB at most ({largest.name}).",
        ]
    return "\n".join(lines)


def family_table(records: Sequence[ModelRecord]) -> str:
    """Write a markdown table with one row per family.

    Args:
        records: The records of one library.
    """
    header = ("family", "models", "localized", "L", "K", "cut width", "largest layer", "repaired", "seconds")
    rows: list[tuple[str, ...]] = []
    for family in sorted({record.family for record in records}):
        members = [record for record in records if record.family == family]
        rows.append((family, str(len(members)), *_family(members)))
    legend = (
        "L local layers and K local modules: least / median / most. Cut width: tensors that cross a border, at most. "
        "Largest layer: the worst share of a model's MACs. Repaired: copied layers that fit without an adapter."
    )
    return f"{markdown_table(header, rows)}\n\n{legend}"


def _family(records: Sequence[ModelRecord]) -> tuple[str, ...]:
    good = [record for record in records if record.status == "localized"]
    if not good:
        return ("0", *[""] * 6)
    blocks = sum(record.blocks for record in good)
    return (
        str(len(good)),
        _spread([record.layers for record in good]),
        _spread([record.modules for record in good]),
        str(max(record.cut_width for record in good)),
        f"{max(record.largest_share for record in good):.2f}",
        f"{100 * sum(record.repaired for record in good) / blocks:.0f} %" if blocks else "",
        f"{statistics.median(record.seconds for record in good):.1f}",
    )


def _spread(values: Sequence[int]) -> str:
    return f"{min(values)} / {statistics.median(values):.0f} / {max(values)}"


def _lists(records: Sequence[ModelRecord]) -> list[str]:
    stopped = [r for r in records if r.status != "localized"]
    good = [r for r in records if r.status == "localized"]
    large = sorted((r for r in good if r.largest_share > LARGE_SHARE), key=lambda r: -r.largest_share)
    return [
        *_table(
            "Not localized",
            ("model", "status", "at", "where", "reason"),
            stopped,
            lambda r: (r.name, r.status, r.stage, " ".join(filter(None, (r.where, r.source))), r.reason),
        ),
        *_table(
            "A layer holds more than half of the MACs",
            ("model", "share", "L", "cut width", "parameters that its operations share"),
            large,
            lambda r: (r.name, f"{r.largest_share:.2f}", str(r.layers), str(r.cut_width), _some(r.tied)),
        ),
        *_table(
            "Submodules kept whole, because they cannot be traced",
            ("model", "number", "submodules"),
            [r for r in records if r.opaque],
            lambda r: (r.name, str(len(r.opaque)), _some(r.opaque)),
        ),
        *_table(
            "Encoders, examined with pooling and a linear classifier behind them",
            ("model", "input"),
            [r for r in records if r.classifier_added],
            lambda r: (r.name, "x".join(map(str, r.input_shape))),
        ),
        *_table(
            "Parameters that no loss reaches, because the model's forward does not use them",
            ("model", "number", "parameters"),
            [r for r in records if r.untrained],
            lambda r: (r.name, str(len(r.untrained)), _some(r.untrained)),
        ),
    ]


def _table(
    title: str, head: tuple[str, ...], records: Sequence[ModelRecord], row: Callable[[ModelRecord], tuple[str, ...]]
) -> list[str]:
    if not records:
        return []
    table = markdown_table(head, map(row, records), left=range(len(head)))
    return [f"## {title}: {len(records):,}", table]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
