"""Does local learning learn? Test accuracy of AugLocal beside backpropagation, all else equal.

Each method is trained by ``localize-cli train``; a run that was interrupted is resumed. For CIFAR-10 as a folder:

python benchmarks/learning.py --data cifar10 --model localize:cifar_resnet20 --epochs 10 --limit 10000 --name cifar10
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from localize import localize
from localize.runtime.memory import peak_step_bytes
from localize.runtime.models import find_model

RESULTS = Path(__file__).parent / "results"
COLOURS = {"bp": "#7a7a7a", "auglocal": "#c2410c"}
NAMES = {"bp": "backpropagation", "auglocal": "AugLocal"}


def main() -> None:
    arguments = parse()
    folder = arguments.runs / arguments.name
    methods = {method: train(method, arguments, folder / method) for method in ("bp", "auglocal")}
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
    parser.add_argument("--name", default="learning", help="of the files of results")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="folder for the runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def train(method: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Trains by the command line, and gathers what it wrote."""
    command = [sys.executable, "-m", "localize.cli", "train", "--method", method, "--out", str(folder)]
    options = ("data", "model", "epochs", "batch_size", "lr", "depth", "limit", "test_limit", "seed", "device")
    for option in options:
        if getattr(arguments, option) is not None:
            command += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
    if (folder / "checkpoint.pt").exists():
        command.append("--resume")
    subprocess.run(command, check=True)
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    plan = json.loads((folder / "plan.json").read_text())
    shape, outputs = tuple(plan["input"]["shape"][1:]), plan["output"]["shape"][-1]
    local = localize(
        find_model(arguments.model).build(outputs), method, d=arguments.depth, example_inputs=torch.zeros(2, *shape)
    )
    return {
        "local_layers": len(plan["layers"]),
        "local_modules": len(plan["modules"]),
        "peak_step_bytes": peak_step_bytes(local, arguments.batch_size, image_shape=shape, classes=outputs),
        "history": history,
    }


def machine() -> str:
    """Processor, cores and accelerator in a line."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor or platform.processor() or platform.machine()}, {os.cpu_count()} cores{accelerator}"


def markdown(report: dict[str, Any], arguments: argparse.Namespace) -> str:
    """The results as a page."""
    header = (
        "method",
        "test accuracy, %",
        "training accuracy, %",
        "local modules",
        "peak memory, MB",
        "images/s",
        "time, s",
    )
    rows = [header, ("---", *["---:"] * (len(header) - 1))]
    for method, found in report["methods"].items():
        history = found["history"]
        seconds = sum(epoch["seconds"] for epoch in history)
        images = sum(epoch["seconds"] * epoch["images_per_second"] for epoch in history)
        name = f"AugLocal, d={arguments.depth}" if method == "auglocal" else NAMES[method]
        rows.append(
            (
                name,
                f"{100 * history[-1]['test_accuracy']:.2f}",
                f"{100 * history[-1]['train_accuracy']:.2f}",
                str(found["local_modules"]),
                f"{found['peak_step_bytes'] / 1e6:,.1f}",
                f"{images / seconds:,.0f}",
                f"{seconds:,.0f}",
            )
        )
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return (
        f"# Learning: {arguments.model}, {arguments.epochs} epochs\n\n{table}\n\n![curves]({arguments.name}.png)\n\n"
        f"Accuracy after the last epoch, of the plain model in eval mode. Peak memory: live tensors of one step at "
        f"batch {arguments.batch_size}, counted. Both methods start from equal weights and see equal batches.\n\n"
        f"- command: `{report['command']}`\n- date: {report['date']}\n- machine: {report['machine']}\n"
        f"- versions: {versions}\n"
    )


def draw(report: dict[str, Any], arguments: argparse.Namespace) -> Figure:
    """Accuracy over the epochs, and where in the network the loss falls."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, losses = figure.subplots(1, 2)
    for method, found in report["methods"].items():
        history = found["history"]
        epochs = [epoch["epoch"] for epoch in history]
        style: dict[str, Any] = {"color": COLOURS[method], "marker": "o", "markersize": 3}
        test, train_ = ([100 * epoch[key] for epoch in history] for key in ("test_accuracy", "train_accuracy"))
        accuracy.plot(epochs, test, label=f"{NAMES[method]}, test {test[-1]:.1f} %", **style)
        accuracy.plot(epochs, train_, linestyle=":", label="training", **style)
        last = list(history[-1]["module_losses"].values())
        if len(last) > 1:
            losses.plot(range(1, len(last) + 1), last, label=f"{NAMES[method]}, local modules", **style)
        else:
            losses.axhline(last[0], color=COLOURS[method], label=NAMES[method])
    accuracy.set_ylabel("accuracy, %")
    accuracy.set_xlabel("epoch")
    losses.set_ylabel("training loss in the last epoch")
    losses.set_xlabel("local module, input to output")
    for axes in (accuracy, losses):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, fontsize=9)
    figure.suptitle(f"{arguments.model.partition(':')[2]}, {arguments.epochs} epochs", fontsize=12)
    return figure


if __name__ == "__main__":
    main()
