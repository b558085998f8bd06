"""What compiling a training step costs: compiled artefacts and processor time of the first step, by depth.

``python benchmarks/compile_regions.py --out benchmarks/results/compile_regions.md`` compiles everything anew, with
inductor and without its caches on disk: some minutes for each network.
"""

from __future__ import annotations

import argparse
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # compilers are then children of this process, which are counted

import torch

from localize import LocalGraphModule, Runtime, localize
from localize.models import cifar_resnet


def step(local: LocalGraphModule, batch_size: int) -> float:
    """Seconds of a processor, compilers' included, for a training step on random images."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch_size, 3, 32, 32, generator=generator)
    y = torch.randint(10, (batch_size,), generator=generator)
    began = sum(os.times()[:4])
    for out in local.steps(x, y):
        out.loss.backward()
        del out
    return sum(os.times()[:4]) - began


def measure(depth: int, d: int, batch_size: int, backend: str) -> dict[str, float]:
    """One network, compiled from nothing."""
    torch._dynamo.reset()
    local = localize(cifar_resnet(depth), d=d, seed=0)
    step(local, batch_size)
    plain = step(local, batch_size)
    local.zero_grad()
    local.runtime = Runtime(compile=True, backend=backend)
    first = step(local, batch_size)
    local.zero_grad()
    regions, structures = local.runtime.regions.count()
    return {
        "modules": len(local.local_modules),
        "regions": regions,
        "structures": structures,
        "artefacts": local.runtime.artefacts.count,
        "first": first,
        "plain": plain,
        "second": step(local, batch_size),
    }


def report(rows: dict[tuple[int, int], dict[str, float]], batch_size: int, backend: str) -> str:
    """Return the table as Markdown."""
    lines = [
        "# Compiled regions: artefacts and cost of the first step",
        "",
        f"AugLocal on CIFAR ResNets, batch {batch_size} of 3x32x32, backend {backend}, one thread, caches on disk off, "
        f"times in seconds of a processor, compilers included; "
        f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{datetime.now(UTC):%Y-%m-%d}. `python benchmarks/compile_regions.py`.",
        "",
        "| network | d | local modules | regions | distinct structures | compiled artefacts | first step | plain step "
        "| first step less a plain one, to ResNet-20's |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for (depth, d), row in rows.items():
        shallow = rows[min(depth for depth, other in rows if other == d), d]
        ratio = (row["first"] - row["plain"]) / (shallow["first"] - shallow["plain"])
        counts = " | ".join(f"{row[name]:.0f}" for name in ("modules", "regions", "structures", "artefacts"))
        lines.append(f"| ResNet-{depth} | {d} | {counts} | {row['first']:.1f} s | {row['plain']:.2f} s | {ratio:.2f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 110])
    parser.add_argument("--d", type=int, nargs="+", default=[4, 6])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.compile(torch.sin, backend=options.backend)(torch.ones(64))  # imports, and what compilers do once
    rows = {}
    for d in options.d:
        for depth in options.depths:
            rows[depth, d] = measure(depth, d, options.batch_size, options.backend)
            print(depth, d, rows[depth, d], flush=True)
    text = report(rows, options.batch_size, options.backend)
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
