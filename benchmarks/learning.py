"""Does local learning learn? Test accuracy, cost, memory and step time of each method, all else equal.

Each method is trained by ``localize-cli train``; a run that is finished is read, one that was interrupted resumed. For
CIFAR-10 as a folder:

python benchmarks/learning.py --data cifar10 --model localize:cifar_resnet20 --epochs 10 --limit 10000 --name cifar10
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
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from localize import METHODS, LocalGraphModule, Plan, localize
from localize.bench.zoo import find_model
from localize.memory.peak import peak_step_bytes, train_step
from localize.methods import with_depth

RESULTS = Path(__file__).parent / "results"
OPTIONS: dict[str, dict[str, Any]] = {"gn-dgl": {"head": "joint"}}
"""Options of methods that are not the defaults: of gn-dgl the model's own classifier is compared, so it has to learn
with the last local module, as it does with the other methods."""
COLOURS = ("#7a7a7a", "#c2410c", "#1d6fb8", "#3f8f29", "#8a4fbf", "#b8860b", "#0f8b8d", "#d1478c", "#5b5bd6", "#6b4226")


def main() -> None:
    arguments = parse()
    folder = arguments.runs / arguments.name
    methods = {method: train(method, arguments, folder / method) for method in arguments.methods}
    for method, seconds in step_seconds(arguments, list(methods)).items():
        methods[method]["step_seconds"] = seconds
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", "numpy")}},
        "settings": {key: str(value) for key, value in vars(arguments).items() if key not in ("runs", "results")},
        "methods": methods,
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    target = arguments.results / arguments.name
    target.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    target.with_suffix(".md").write_text(markdown(report, arguments))
    draw(report, arguments).savefig(target.with_suffix(".png"), dpi=130)
    print(markdown(report, arguments))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="what localize-cli train takes as --data")
    parser.add_argument("--model", default="localize:cifar_resnet20")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--depth", type=int, default=4, help="of AugLocal's auxiliary networks")
    parser.add_argument("--limit", type=int, help="training images")
    parser.add_argument("--test-limit", type=int, help="test images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    parser.add_argument("--amp", help="what localize-cli train takes as --amp")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--methods", nargs="+", default=[name for name in METHODS if name != "checkpoint"])
    parser.add_argument("--timed-steps", type=int, default=5, help="steps of each method, in turn; the median counts")
    parser.add_argument("--name", default="learning", help="of the files of results")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="folder for the runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def train(method: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Trains by the command line, and gathers what it wrote."""
    command = [sys.executable, "-m", "localize.cli", "train", "--method", method, "--out", str(folder)]
    options = ("data", "model", "epochs", "batch_size", "lr", "depth", "limit", "test_limit", "seed", "device", "amp")
    for option in options:
        if getattr(arguments, option) is not None:
            command += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
    command += [word for name, value in OPTIONS.get(method, {}).items() for word in (f"--{name}", str(value))]
    command += ["--channels-last"] if arguments.channels_last else []
    if (folder / "checkpoint.pt").exists():
        command.append("--resume")
    history = epochs_of(folder)
    if len(history) < arguments.epochs:
        subprocess.run(command, check=True)
        history = epochs_of(folder)
    plan = Plan.from_json((folder / "plan.json").read_text())
    local = built(arguments, method, plan)
    shape, outputs = plan.input.shape[1:], plan.output.channels
    return {
        "local_layers": len(plan.layers),
        "local_modules": len(plan.modules),
        "macs": plan.macs + plan.auxiliary_macs,
        "peak_step_bytes": peak_step_bytes(local, arguments.batch_size, image_shape=shape, classes=outputs),
        "history": history,
    }


def epochs_of(folder: Path) -> list[dict[str, Any]]:
    """Figures of the epochs that a run has behind it."""
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def built(arguments: argparse.Namespace, method: str, plan: Plan) -> LocalGraphModule:
    """Return the model of a run, localized in the same way, with fresh weights."""
    model = find_model(arguments.model).build(plan.output.channels)
    example = torch.zeros(2, *plan.input.shape[1:])
    return localize(model, method, d=arguments.depth, example_inputs=example, **OPTIONS.get(method, {}))


def step_seconds(arguments: argparse.Namespace, methods: Sequence[str]) -> dict[str, float]:
    """Median seconds of a training step, forwards and backwards, in plain float32; the methods take turns."""
    folder = arguments.runs / arguments.name
    device = torch.device(arguments.device or "cpu")
    plans = {method: Plan.from_json((folder / method / "plan.json").read_text()) for method in methods}
    locals_ = {method: built(arguments, method, plan).to(device) for method, plan in plans.items()}
    found: dict[str, list[float]] = {method: [] for method in methods}
    for _ in range(arguments.timed_steps + 1):
        for method, local in locals_.items():
            x = torch.rand(arguments.batch_size, *plans[method].input.shape[1:], device=device)
            y = torch.zeros(len(x), dtype=torch.int64, device=device)
            started = time.perf_counter()
            train_step(local, x, y)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            found[method].append(time.perf_counter() - started)
            local.zero_grad(set_to_none=True)
    # The first step of each warms up.
    return {method: statistics.median(seconds[1:]) for method, seconds in found.items()}


def machine() -> str:
    """Processor, cores and accelerator in a line."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor or platform.processor() or platform.machine()}, {os.cpu_count()} cores{accelerator}"


def markdown(report: dict[str, Any], arguments: argparse.Namespace) -> str:
    """Return the results as a Markdown page."""
    header = (
        "method",
        "test accuracy, %",
        "training accuracy, %",
        "local modules",
        "MACs, M",
        "peak memory, MB",
        "step time, s",
    )
    rows = [header, ("---", *["---:"] * (len(header) - 1))]
    for method, found in report["methods"].items():
        history = found["history"]
        rows.append(
            (
                name_of(method, arguments),
                f"{100 * history[-1]['test_accuracy']:.2f}",
                f"{100 * history[-1]['train_accuracy']:.2f}",
                str(found["local_modules"]),
                f"{found['macs'] / 1e6:,.1f}",
                f"{found['peak_step_bytes'] / 1e6:,.1f}",
                f"{found['step_seconds']:.2f}",
            )
        )
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return (
        f"# Learning: {arguments.model}, {arguments.epochs} epochs\n\n{table}\n\n![curves]({arguments.name}.png)\n\n"
        f"Accuracy after the last epoch, of the plain model in eval mode. Peak memory: live tensors of one step at "
        f"batch {arguments.batch_size}, counted, in float32. Step time: median of {arguments.timed_steps} forward and "
        f"backward passes in float32, the methods taking turns. MACs: of a forward pass at batch 1, auxiliary networks "
        f"included. All methods start from equal weights and see equal batches.\n\n"
        f"- command: `{report['command']}`\n- date: {report['date']}\n- machine: {report['machine']}\n"
        f"- versions: {versions}\n"
    )


def name_of(method: str, arguments: argparse.Namespace) -> str:
    """Return the name of a method in tables."""
    chosen = with_depth(METHODS[method].Options, arguments.depth, OPTIONS.get(method, {}))
    return ", ".join([method, *(f"{name}={value}" for name, value in chosen.items())])


def draw(report: dict[str, Any], arguments: argparse.Namespace) -> Figure:
    """Accuracy over the epochs, and where in the network the loss falls."""
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, losses = figure.subplots(1, 2)
    for colour, (method, found) in zip(itertools.cycle(COLOURS), report["methods"].items()):
        history = found["history"]
        epochs = [epoch["epoch"] for epoch in history]
        style: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 3}
        test = [100 * epoch["test_accuracy"] for epoch in history]
        accuracy.plot(epochs, test, label=f"{method}, {test[-1]:.1f} %", **style)
        last = list(history[-1]["module_losses"].values())
        if len(last) > 1:
            losses.plot(range(1, len(last) + 1), last, label=method, **style)
        else:
            losses.axhline(last[0], color=colour, label=method)
    accuracy.set_ylabel("test accuracy, %")
    accuracy.set_xlabel("epoch")
    losses.set_ylabel("training loss in the last epoch")
    losses.set_xlabel("local module, input to output")
    for axes in (accuracy, losses):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)
    figure.suptitle(f"{arguments.model.partition(':')[2]}, {arguments.epochs} epochs", fontsize=12)
    return figure


if __name__ == "__main__":
    main()
