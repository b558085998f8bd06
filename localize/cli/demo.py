"""The demonstration: one small network, trained by AugLocal and by backpropagation, compared in a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from localize.api import localize
from localize.cli.progress import Display
from localize.memory.peak import peak_step_bytes
from localize.models import cifar_resnet
from localize.training.data.batches import Data, load_data
from localize.training.recipe import Recipe
from localize.training.trainer import train

MODEL_DEPTH, AUXILIARY_DEPTH = 20, 4
IMAGE_SIZE, BATCH_SIZE, LR, SEED = 16, 64, 0.1, 0  # equal for both methods; a minute on one core
MEMORY_BATCH = 1024
"""Batch that the memory of a step is counted at: the paper's."""


@dataclass(frozen=True, slots=True)
class Row:
    """One method's line of the table."""

    method: str
    accuracy: float
    peak_bytes: int
    seconds: float


def run_demo(epochs: int, out: Path) -> None:
    """Trains both networks with equal weights, data and recipe, and prints the table.

    Raises:
        LocalizeError: A setting is out of range.
    """
    recipe = Recipe(epochs=epochs, batch_size=BATCH_SIZE, lr=LR)
    data = load_data("digits", image_size=IMAGE_SIZE)
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"ResNet-{MODEL_DEPTH} (CIFAR style) on {len(data.train_labels):,} images of handwritten digits, "
        f"{data.size[0]}x{data.size[1]}, {epochs} epochs"
    )
    # Layers this small gain little from a second thread, and lose tenfold by it where another program wants the core.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [_train(method, data, recipe, out, console) for method in ("auglocal", "bp")]
    finally:
        torch.set_num_threads(threads)
    console.print(_table(rows))
    console.print(
        f"Peak memory: live tensors of one training step at batch {MEMORY_BATCH}, counted. Curves and weights: {out}"
    )


def _train(method: str, data: Data, recipe: Recipe, out: Path, console: Console) -> Row:
    torch.manual_seed(SEED)  # equal initial weights for both methods
    model = cifar_resnet(MODEL_DEPTH, num_classes=len(data.classes))
    example = torch.zeros(2, *data.image_shape)
    local = localize(model, method, d=AUXILIARY_DEPTH, example_inputs=example, seed=SEED)
    peak = peak_step_bytes(local, MEMORY_BATCH, image_shape=data.image_shape, classes=len(data.classes))
    with Display(recipe, console, label=f"{method:<8}") as display:
        result = train(local, data, recipe, out / method, SEED, on_event=display.on_event)
    seconds = sum(metrics.seconds for metrics in result.history)
    return Row(method, result.history[-1].test_accuracy, peak, seconds)


def _table(rows: list[Row]) -> Table:
    names = {"auglocal": f"AugLocal, d={AUXILIARY_DEPTH}", "bp": "backpropagation"}
    table = Table(box=box.SIMPLE)
    table.add_column("method")
    for heading in ("test accuracy", f"peak memory, batch {MEMORY_BATCH}", "training time"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            names[row.method], f"{100 * row.accuracy:.2f} %", f"{row.peak_bytes / 1e6:,.0f} MB", f"{row.seconds:.0f} s"
        )
    return table
