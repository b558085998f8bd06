"""How compiling grows: with the depth of one network, and over the largest models of timm.

python benchmarks/scale.py --runs 3 --output benchmarks/results/scale.md

Models are on the meta device, so that their parameters take no memory. Each of timm's runs in a process of its own.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from localize import localize
from localize.compiler.inputs import input_of, leaf_policy
from localize.models import cifar_resnet
from passes.capture.capture import capture
from passes.ir import TensorSpec
from passes.partition.partition import partition
from passes.shapes.infer import infer_shapes

DEPTHS = (20, 56, 110, 302, 602, 1202)
LARGEST: dict[str, dict[str, Any]] = {
    "mvitv2_huge_cls": {},
    "maxvit_rmlp_base_rw_384": {},
    "swinv2_cr_giant_384": {},
    "mobilenetv5_300m": {},
    "sam2_hiera_large": {},
    "densenet264d": {"max_cut": 32},
    "eva02_enormous_patch14_clip_224": {},
    "vit_pe_core_gigantic_patch14_448": {},
    "vit_5b_patch16_sapiens2": {},
    "vit_7b_patch16_dinov3": {},
}
"""Most nodes first, then most parameters; with options of ``localize``."""
D = 3


def seconds(run: Callable[[], object], runs: int = 1) -> float:
    """Median processor time of a call: its duration on one thread, whatever else the machine does."""
    found = []
    for _ in range(runs):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return statistics.median(found)


def measure(model: nn.Module, example: torch.Tensor | None, runs: int, **options: Any) -> dict[str, Any]:
    """Seconds of each stage and of the whole call, and the size of what came out."""
    made: list[Any] = []

    # The whole call first: in a new process it then has no work of torch's own done for it.
    def compile_it() -> None:
        # Only the last one is kept: what is alive costs every garbage collection time.
        made[:] = [localize(model, d=D, seed=0, example_inputs=example, **options)]

    total = seconds(compile_it, runs)
    shape, dtype = input_of(model, example)
    spec = TensorSpec(tuple(shape), dtype)
    captured = capture(model, leaf_policy(), example=spec)
    shapes = infer_shapes(captured, shape, dtype)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "nodes": len(captured.nodes),
        "layers": len(made[-1].plan.layers),
        "modules": len(made[-1].plan.modules),
        "stages": (
            seconds(lambda: capture(model, leaf_policy(), example=spec), runs),
            seconds(lambda: infer_shapes(captured, shape, dtype), runs),
            seconds(lambda: partition(captured, shapes, options.get("max_cut")), runs),
        ),
        "total": total,
    }


def growth(depth: int, runs: int) -> str:
    """Return a line of the first table."""
    with torch.device("meta"):
        model = cifar_resnet(depth)
    found = measure(model, torch.empty(2, 3, 32, 32, device="meta"), runs)
    stages = " | ".join(f"{value:.2f}" for value in found["stages"])
    total, nodes = found["total"], found["nodes"]
    return f"| {depth} | {nodes:,} | {found['layers']} | {stages} | {total:.2f} | {1000 * total / nodes:.2f} |"


def one(name: str) -> dict[str, Any]:
    """Figures of a model of timm's; to be called in a process of its own, whose memory is the answer's."""
    import timm

    before = peak_rss()
    with torch.device("meta"):
        model = timm.create_model(name)
    found = measure(model, None, 1, **LARGEST[name])
    return {**found, "peak": peak_rss(), "before": before}


def peak_rss() -> int:
    """Bytes that the process has held at most."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: there a process starts with the peak of the one that started it.
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def largest(name: str) -> str:
    """Return a line of the second table."""
    command = [sys.executable, str(Path(__file__)), "--model", name]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(text.splitlines()[-1])
    options = "".join(f", {key}={value}" for key, value in LARGEST[name].items())
    stages = " | ".join(f"{value:.1f}" for value in found["stages"])
    return (
        f"| {name}{options} | {found['parameters'] / 1e6:,.0f} M | {found['nodes']:,} | {found['layers']} "
        f"| {found['modules']} | {stages} | {found['total']:.1f} | {found['peak'] / 1e9:.2f} "
        f"| {found['before'] / 1e9:.2f} |"
    )


def report(runs: int) -> str:
    """Both tables."""
    localize(cifar_resnet(8), example_inputs=torch.empty(2, 3, 32, 32))  # imports, and torch's own first-call work
    return "\n".join(
        [
            "# How compiling grows",
            "",
            f"{datetime.date.today()}, torch {torch.__version__}, {os.cpu_count()} cores ({platform.machine()}), "
            f"d={D}, models on the meta device. Seconds of processor time, on one thread.",
            "",
            "Command: `python benchmarks/scale.py`",
            "",
            f"## CIFAR ResNets, 3x32x32: median of {runs} calls after a warm-up",
            "",
            "| depth | nodes | L | capture | shapes | partition | localize | ms a node |",
            "|---:|---:|---:|---:|---:|---:|---:|---:|",
            *(growth(depth, runs) for depth in DEPTHS),
            "",
            "## Large models of timm, at their own input size: one call in a new process",
            "",
            "Memory is the process's peak resident set; its last column is what Python, torch and timm take before a "
            "model is built.",
            "",
            "| model | parameters | nodes | L | K | capture | shapes | partition | localize | peak GB | idle GB |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
            *(largest(name) for name in LARGEST),
            "",
        ]
    )


def main() -> None:
    """Measures and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--model", choices=LARGEST, help="print figures of this one as JSON, and nothing else")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.model:
        print(json.dumps(one(arguments.model)))
        return
    text = report(arguments.runs)
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
