"""How long `localize()` takes, by model: the median of several calls, and what share each stage has.

python benchmarks/compile_time.py --runs 5 --output benchmarks/results/compile_time.md
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import nn

from localize import localize
from localize.compiler.inputs import leaf_policy
from localize.models import cifar_resnet
from passes.capture.capture import capture
from passes.partition.partition import partition
from passes.shapes.infer import infer_shapes

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "torchvision resnet50, 3x224x224": (torchvision.models.resnet50, (2, 3, 224, 224)),
    "CIFAR ResNet-32, 3x32x32": (lambda: cifar_resnet(32), (2, 3, 32, 32)),
    "CIFAR ResNet-110, 3x32x32": (lambda: cifar_resnet(110), (2, 3, 32, 32)),
}


def seconds(run: Callable[[], object], runs: int) -> float:
    """Median wall-clock seconds of a call."""
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def row(name: str, build: Callable[[], nn.Module], shape: tuple[int, ...], runs: int) -> str:
    """Return a line of the table: the stages, then the whole call for three depths."""
    model = build()
    captured = capture(model, leaf_policy())
    shapes = infer_shapes(captured, shape)
    stages = (
        seconds(lambda: capture(model, leaf_policy()), runs),
        seconds(lambda: infer_shapes(captured, shape), runs),
        seconds(lambda: partition(captured, shapes), runs),
    )
    calls = [seconds(lambda d=d: localize(model, d=d, example_inputs=torch.empty(shape)), runs) for d in (2, 4, 6)]  # type: ignore[misc]
    return f"| {name} | " + " | ".join(f"{value:.2f}" for value in (*stages, *calls)) + " |"


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    localize(cifar_resnet(8), example_inputs=torch.empty(2, 3, 32, 32))  # imports, and torch's own first-call work
    lines = [
        "# Compile time of `localize()`, seconds",
        "",
        f"{datetime.date.today()}, torch {torch.__version__}, {os.cpu_count()} cores ({platform.machine()}), "
        f"median of {arguments.runs} calls after a warm-up; drawing the auxiliary networks' weights included.",
        "",
        "Command: `python benchmarks/compile_time.py`",
        "",
        "| model | capture | shapes | partition | localize d=2 | d=4 | d=6 |",
        "|---|---|---|---|---|---|---|",
        *(row(name, *entry, arguments.runs) for name, entry in MODELS.items()),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
