"""Which layers should an auxiliary network copy? AugLocal's strategies beside each other, over depths and seeds.

AugLocal (ICLR 2024), section 4.5, table 5: uniform selection beats sequential and repetitive. Each run is one of
``localize-cli train``; runs that are finished are read, interrupted ones resumed, so the same command goes on.

python benchmarks/ablation.py --data cifar10 --model localize:cifar_resnet20 --epochs 10 --limit 10000 --jobs 2
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
STRATEGIES = ("uniform", "sequential", "repetitive")

Key = tuple[str, int, int]
"""Strategy, depth, seed."""


def main() -> None:
    arguments = parse()
    # A whole comparison for the first seed before the next one begins.
    keys = [(s, d, seed) for seed, d, s in itertools.product(arguments.seeds, arguments.depths, arguments.strategies)]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        accuracies = dict(zip(keys, pool.map(lambda key: accuracy(key, arguments), keys), strict=True))
    text = markdown(accuracies, arguments)
    arguments.results.mkdir(parents=True, exist_ok=True)
    target = arguments.results / arguments.name
    target.with_suffix(".md").write_text(text)
    rows = [{"selection": s, "d": d, "seed": seed, "accuracy": found} for (s, d, seed), found in accuracies.items()]
    target.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    print(text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="what localize-cli train takes as --data")
    parser.add_argument("--model", default="localize:cifar_resnet20")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--limit", type=int, help="training images")
    parser.add_argument("--test-limit", type=int, help="test images")
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES)
    parser.add_argument("--depths", nargs="+", type=int, default=(2, 3, 4))
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--amp", help="what localize-cli train takes as --amp")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--name", default="ablation", help="of the files of results")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="folder for the runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def accuracy(key: Key, arguments: argparse.Namespace) -> float:
    """Test accuracy after the last epoch, 0..1; trains unless the run is there."""
    selection, d, seed = key
    folder = arguments.runs / f"{selection}-d{d}-seed{seed}"
    history = metrics(folder)
    if len(history) < arguments.epochs:
        command = [sys.executable, "-m", "localize.cli", "train", "--method", "auglocal", "--out", str(folder)]
        command += ["--selection", selection, "--depth", str(d), "--seed", str(seed)]
        command += ["--channels-last"] if arguments.channels_last else []
        for option in ("data", "model", "epochs", "batch_size", "limit", "test_limit", "amp"):
            if getattr(arguments, option) is not None:
                command += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
        if (folder / "checkpoint.pt").exists():
            command.append("--resume")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        history = metrics(folder)
    return float(history[-1]["test_accuracy"])


def metrics(folder: Path) -> list[dict[str, float]]:
    """Figures of the epochs that a run has behind it."""
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def markdown(accuracies: Mapping[Key, float], arguments: argparse.Namespace) -> str:
    """Return the results as a Markdown page."""
    lines = [
        f"# Selection strategies: {arguments.model}, {arguments.epochs} epochs",
        "",
        f"Test accuracy, %: {_seeds(arguments.seeds)}.",
        "",
        "| d | " + " | ".join(arguments.strategies) + " |",
        "|---:|" + "---:|" * len(arguments.strategies),
    ]
    for d in arguments.depths:
        cells = []
        for strategy in arguments.strategies:
            found = [100 * accuracies[strategy, d, seed] for seed in arguments.seeds]
            spread = f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.2f}{spread}")
        lines.append(f"| {d} | " + " | ".join(cells) + " |")
    return "\n".join(
        [
            *lines,
            "",
            f"- command: `{shlex.join(['python', *sys.argv])}`",
            f"- date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
            f"- machine: {os.cpu_count()} cores ({platform.machine()})",
            f"- versions: python {platform.python_version()}, torch {version('torch')}",
            "",
        ]
    )


def _seeds(seeds: Sequence[int]) -> str:
    return f"mean and standard deviation of {len(seeds)} seeds" if len(seeds) > 1 else "one seed"


if __name__ == "__main__":
    main()
