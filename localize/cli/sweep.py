"""``localize-cli sweep``: many models, a file of records, a table."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from localize.bench.sweep.coverage import Log, family_table, report
from localize.bench.sweep.examine import examine
from localize.bench.sweep.record import ExamineSettings, ModelRecord, SweepError
from localize.bench.sweep.workers import SOURCES, Subject, subjects, sweep
from localize.bench.zoo import ModelError


def run_sweep(
    settings: ExamineSettings,
    source: str,
    patterns: Sequence[str],
    jobs: int | None,
    timeout: float,
    out: Path,
    summary: Path | None,
    *,
    retry: bool,
    force: bool,
) -> None:
    """Examine the models that ``out`` has no record of, and print the results of all requested models.

    Raises:
        LocalizeError: An option is out of range, or the file belongs to another sweep.
        KeyboardInterrupt: Ctrl-C was pressed; the message says how to continue.
    """
    if source not in (*SOURCES, "all"):
        raise ModelError(f"unknown source of models {source!r}", remedy=f"Give {', '.join(SOURCES)} or all")
    if retry and force:
        raise SweepError("--retry and --force contradict each other", why="--retry keeps records, --force drops them")
    wanted = subjects(SOURCES if source == "all" else (source,), patterns)
    log = Log(out, restart=force)
    console = Console(highlight=False, soft_wrap=True)
    waiting = [subject for subject in wanted if _due(log, subject, retry=retry)]
    if waiting or not log.runs:
        log.begin(settings, command=shlex.join(["localize-cli", *sys.argv[1:]]), jobs=jobs, timeout=timeout)
    if len(waiting) < len(wanted):
        console.print(f"{len(wanted) - len(waiting):,} of {len(wanted):,} models are in {out} already")
    try:
        _examine(waiting, settings, jobs, timeout, log, console)
    except KeyboardInterrupt:
        done = sum(name in log.records for name, _ in wanted)
        raise KeyboardInterrupt(
            f"interrupted; {done:,} of {len(wanted):,} models are in {out}, and the same command continues from there"
        ) from None
    records = [log.records[name] for name, _ in wanted]
    if summary is not None:
        summary.parent.mkdir(parents=True, exist_ok=True)
        summary.write_text(report(log.runs, records), encoding="utf-8")
    _print_table(records, console)
    console.print(f"{_counts(records)}, records in {out}{f', summary in {summary}' if summary else ''}")


def _due(log: Log, subject: Subject, *, retry: bool) -> bool:
    record = log.records.get(subject[0])
    return record is None or (retry and record.status != "localized")


def _examine(
    waiting: Sequence[Subject], settings: ExamineSettings, jobs: int | None, timeout: float, log: Log, console: Console
) -> None:
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    # Closing the sweep ends its workers, also where Ctrl-C strikes.
    with progress, closing(sweep(waiting, settings, examine, jobs=jobs, timeout=timeout)) as results:
        task = progress.add_task("starting", total=len(waiting))
        for record in results:
            log.append(record)
            progress.update(task, advance=1, description=record.name)
            if record.status != "localized":
                console.print(problem(record), markup=False)


def problem(record: ModelRecord) -> str:
    """Describe in one line why a model was not localized."""
    place = ", ".join(part for part in (record.where, record.source) if part)
    return f"{record.name}: {record.status} at {record.stage}{f' ({place})' if place else ''}: {record.reason}"


def _print_table(records: Sequence[ModelRecord], console: Console) -> None:
    for library in dict.fromkeys(record.name.partition(":")[0] for record in records):
        members = [record for record in records if record.name.startswith(f"{library}:")]
        console.print(f"{library}\n{family_table(members)}", markup=False)


def _counts(records: Sequence[ModelRecord]) -> str:
    statuses = [record.status for record in records]
    counts = {status: statuses.count(status) for status in ("localized", "refused", "failed", "timeout")}
    return ", ".join(f"{count:,} {status}" for status, count in counts.items() if count)
