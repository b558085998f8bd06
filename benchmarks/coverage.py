"""Writes the report of a sweep from its file, without examining anything.

localize-cli sweep --out benchmarks/results/sweep.jsonl
python benchmarks/coverage.py benchmarks/results/sweep.jsonl --output docs/coverage.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from localize.bench.sweep.coverage import Log, report


def main() -> None:
    """Read the records of a sweep and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    if not arguments.file.is_file():
        parser.error(f"no file {arguments.file}")
    log = Log(arguments.file)
    arguments.output.write_text(report(log.runs, log.records.values()), encoding="utf-8")


if __name__ == "__main__":
    main()
