"""How many copied layers are fitted by repair? The smallest model of each of timm's families.

python benchmarks/repair.py --jobs 2 --output docs/repair.md

Which model is the smallest is read off the records of a full sweep. Each is localized with AugLocal, d=3, on the meta
device, and takes one training step on fake tensors (``localize-cli sweep``).
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from localize.bench.sweep.examine import examine
from localize.bench.sweep.record import ExamineSettings, ModelRecord
from localize.bench.sweep.workers import Subject, sweep

COVERAGE = Path(__file__).parent / "results" / "coverage.jsonl"


def smallest(coverage: Path) -> list[Subject]:
    """Name and family of the model of fewest parameters in each of timm's families."""
    lines = (json.loads(line) for line in coverage.read_text().splitlines())
    records = [line for line in lines if line.get("name", "").startswith("timm:")]
    best = {record["family"]: record for record in sorted(records, key=lambda r: -r["params"])}
    return sorted((record["name"], family) for family, record in best.items())


def markdown(records: Sequence[ModelRecord]) -> str:
    """Return the table, worst families first."""
    blocks, repaired = sum(r.blocks for r in records), sum(r.repaired for r in records)
    lines = [
        "# Repair",
        "",
        "An auxiliary network copies later layers. A copy is repaired to fit its new place; where that fails, an",
        "adapter goes in front. This page counts the copies that repair alone made fit, for the smallest model of each",
        "family of timm, with AugLocal at d=3.",
        "",
        f"{datetime.date.today()}, torch {version('torch')}, timm {version('timm')}. "
        "Command: `python benchmarks/repair.py --output docs/repair.md`",
        "",
        f"{len(records)} families, {blocks:,} copied layers, {repaired:,} by repair: {100 * repaired / blocks:.1f} %.",
        "",
        "| family | model | copied layers | by repair | share |",
        "|---|---|---:|---:|---:|",
    ]
    for r in sorted(records, key=lambda r: (r.repaired / max(1, r.blocks), r.family)):
        share = f"{100 * r.repaired / r.blocks:.0f} %" if r.blocks else ""
        lines.append(f"| {r.family} | {r.name.partition(':')[2]} | {r.blocks} | {r.repaired} | {share} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coverage", type=Path, default=COVERAGE, help="records of a full sweep")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--timeout", type=float, default=400, help="seconds for each model")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    models = smallest(arguments.coverage)
    records = list(sweep(models, ExamineSettings(), examine, jobs=arguments.jobs, timeout=arguments.timeout))
    for record in records:
        if record.status != "localized":
            raise SystemExit(f"{record.name}: {record.status} at {record.stage}: {record.reason}")
    text = markdown(records)
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
