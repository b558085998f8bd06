"""What a memory budget costs in time: a step within it beside the same step without, one thread, taking turns.

python benchmarks/recompute_time.py

The plan is made for the paper's batch, where memory matters; times are taken at a smaller one, since what is recomputed
costs the same share of a step at any.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from localize import LocalGraphModule, MemoryBudget, localize
from localize.bench.report import environment
from localize.bench.timing import take_turns
from localize.models import cifar_resnet
from localize.text import format_bytes, markdown_table

RESULTS = Path(__file__).parent / "results"
CASES = ((32, 6, "0.6GB"), (32, 6, "0.51GB"), (32, 2, "0.55GB"), (110, 6, "0.7GB"), (110, 2, "0.55GB"))
"""Depth of a CIFAR ResNet, d, budget."""
HEADER = ("network", "d", "budget", "peak", "without", "step, ms", "without, ms", "ratio", "what is recomputed")
BATCH = 1024


def stepping(local: LocalGraphModule, batch: int) -> Callable[[], None]:
    """Return a function that runs a step: forward and backward of each module, then the update."""
    optimizer = torch.optim.SGD(local.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))

    def step() -> None:
        for out in local.steps(x, y):
            out.loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def row(depth: int, d: int, budget: str, batch: int, rounds: int) -> tuple[str, ...]:
    """Memory and time of one case."""
    x = torch.empty(2, 3, 32, 32)
    plain = localize(cifar_resnet(depth), d=d, example_inputs=x, seed=0)
    lean = localize(cifar_resnet(depth), d=d, example_inputs=x, seed=0, memory_budget=MemoryBudget(budget, BATCH))
    kept = lean.plan.budget
    assert kept is not None, "a plan with a budget says so"
    timing = take_turns({"plain": stepping(plain, batch), "lean": stepping(lean, batch)}, rounds, warmup=2)
    milliseconds = [f"{1e3 * timing[name].median:,.0f}" for name in ("lean", "plain")]
    ratio = timing["lean"].over(timing["plain"])
    choices = "; ".join(kept.choices)
    peaks = (format_bytes(kept.peak), format_bytes(kept.before))
    return (f"ResNet-{depth}", str(d), budget, *peaks, *milliseconds, f"{ratio:.2f}", choices)


def main() -> None:
    """Measures, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64, help="Of the timed steps.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", type=int, nargs="+", default=list(range(len(CASES))))
    parser.add_argument("--output", type=Path, default=RESULTS / "recompute_time.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = []
    for index in arguments.cases:
        lines.append(row(*CASES[index], arguments.batch_size, arguments.rounds))
        print(lines[-1], flush=True)
    facts = {"command": f"`{shlex.join(['python', *sys.argv])}`", **environment()}
    text = (
        f"# What a memory budget costs in time\n\n{markdown_table(HEADER, lines)}\n\n"
        f"AugLocal on CIFAR ResNets. Peaks: forecast of live tensors at batch {BATCH}, float32, SGD with momentum. "
        f"Times: a step at batch {arguments.batch_size}, {arguments.threads} thread(s), medians of {arguments.rounds} "
        "rounds in which the two take turns; the ratio is the median of the rounds' ratios. Losses and gradients are "
        "the same, bit for bit.\n\n" + "".join(f"- {key}: {value}\n" for key, value in facts.items())
    )
    arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
