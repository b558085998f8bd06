"""Step time of the plain schedule on a CPU beside backpropagation's, and beside the ratio of their work.

python benchmarks/step_time.py

Figures of `localize-cli bench` for several models, numbers of threads and batch sizes; all methods of a run take turns.
On a busy machine set OMP_WAIT_POLICY=passive: with several threads, those that wait would hold on to their cores.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from localize.bench.measure import measure
from localize.bench.report import Report, environment
from localize.bench.setup import Setup
from localize.bench.zoo import find_model
from localize.text import markdown_table

RESULTS = Path(__file__).parent / "results"
HEADER = (
    "model", "batch", "threads", "method", "step, ms", "IQR, ms", "time/BP", "forward MACs/BP", "fvcore FLOPs/BP",
    "FLOP bound", "time/bound",
)  # fmt: skip


def rows(report: Report) -> list[tuple[str, ...]]:
    """Return one line for each method."""
    found: list[tuple[str, ...]] = []
    bp = report.find("bp")
    assert bp is not None, "backpropagation takes part in every run"
    for entry in report.entries:
        ratios, timing = report.ratios(entry), entry.timing
        assert timing is not None, f"{entry.label} was not timed"
        found.append(
            (
                report.model,
                str(report.settings["batch_size"]),
                str(report.settings["threads"]),
                entry.label,
                f"{1e3 * timing.median:,.0f}",
                f"{1e3 * timing.spread:,.0f}",
                f"{ratios.time_to_bp:.2f}",
                f"{entry.plan_macs / bp.plan_macs:.2f}",
                f"{entry.fvcore_flops / bp.fvcore_flops:.2f}",
                f"{ratios.macs_to_bp:.2f}",
                f"{ratios.time_to_bound:.2f}",
            )
        )
    return found


def page(lines: list[tuple[str, ...]], facts: dict[str, str], steps: int) -> str:
    """Return the results as Markdown."""
    return (
        "# Step time on a CPU\n\n"
        f"{markdown_table(HEADER, lines)}\n\n"
        f"Forward, backward and update (SGD with Nesterov momentum) in float32, local modules one after the other; "
        f"medians of {steps} rounds in which the methods take turns, time/BP the median of the rounds' ratios. Forward "
        "MACs and fvcore FLOPs: of one forward pass, auxiliary networks included, over the model's own. FLOP bound: "
        "multiply-accumulates of forward and backward as they run, over backpropagation's; local modules do not "
        "compute gradients of their inputs.\n\n" + "".join(f"- {key}: {value}\n" for key, value in facts.items())
    )


def main() -> None:
    """Measures and writes table and JSON; every row as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["localize:cifar_resnet32", "localize:cifar_resnet110"])
    parser.add_argument("--methods", nargs="+", default=["auglocal", "checkpoint", "bp"])
    parser.add_argument("--depths", type=int, nargs="+", default=[6])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64])
    parser.add_argument("--steps", type=int, default=11)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    facts = {"command": f"`{shlex.join(['python', *sys.argv])}`", **environment()}
    lines: list[tuple[str, ...]] = []
    reports = []
    text = ""
    for threads in arguments.threads:
        for model in arguments.models:
            for batch in arguments.batch_sizes:
                setup = Setup(
                    methods=tuple(arguments.methods), depths=tuple(arguments.depths), batch_size=batch,
                    steps=arguments.steps, warmup=2, threads=threads,
                )  # fmt: skip
                report = measure(find_model(model), setup)
                reports.append(json.loads(report.to_json()))
                lines += rows(report)
                text = page(lines, facts, arguments.steps)
                (arguments.results / "step_time.md").write_text(text, encoding="utf-8")
                (arguments.results / "step_time.json").write_text(json.dumps(reports, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
