"""``localize-cli demo``: AugLocal, backpropagation and checkpointing, compared on one small network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
IMAGE_SIZE, BATCH_SIZE, LR, SEED = 16, 64, 0.1, 0  # equal for all methods
MEMORY_BATCH = 1024
"""Batch at which the memory of a step is counted: the paper's."""
NAMES = {
    "auglocal": f"AugLocal, d={AUXILIARY_DEPTH}",
    "bp": "backpropagation",
    "checkpoint": "checkpointing",
}
"""Methods in the order in which they are trained, with their names in the table."""


@dataclass(frozen=True, slots=True)
class Row:
    """One method's row of the table."""

    method: str
    accuracy: float
    """Test accuracy, 0..1."""
    peak_bytes: int
    """Peak memory of a training step at :data:`MEMORY_BATCH`."""
    seconds: float
    """Training time of all epochs, without evaluation."""


def run_demo(epochs: int, out: Path) -> None:
    """Train one network per method with equal weights, data and recipe, and print the table.

    Args:
        epochs: Passes over the training set, for each method.
        out: Folder for the files of the runs.

    Raises:
        LocalizeError: A setting is out of range.
    """
    recipe = Recipe(epochs=epochs, batch_size=BATCH_SIZE, lr=LR)
    data = load_data("digits", image_size=IMAGE_SIZE)
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"ResNet-{MODEL_DEPTH} (CIFAR style) on {len(data.train_labels):,} images of handwritten digits, "
        f"{data.size[0]}x{data.size[1]}, {epochs} epochs by each of {len(NAMES)} methods"
    )
    with _one_thread():
        rows = [_train(method, data, recipe, out, console) for method in NAMES]
    console.print(_table(rows))
    console.print(
        f"Peak memory: live tensors of one training step at batch {MEMORY_BATCH}, counted. Accuracy and time: of the "
        "runs above, on one core. Checkpointing is backpropagation that computes activations a second time, with the "
        f"same results. Curves and weights: {out}"
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    # Layers this small gain little from a second thread, and lose tenfold by it where another program needs the core.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train(method: str, data: Data, recipe: Recipe, out: Path, console: Console) -> Row:
    torch.manual_seed(SEED)  # equal initial weights for all methods
    model = cifar_resnet(MODEL_DEPTH, num_classes=len(data.classes))
    example = torch.zeros(2, *data.image_shape)
    local = localize(model, method, d=AUXILIARY_DEPTH, example_inputs=example, seed=SEED)
    peak = peak_step_bytes(local, MEMORY_BATCH, image_shape=data.image_shape, classes=len(data.classes))
    with Display(recipe, console, label=f"{method:<10}") as display:
        result = train(local, data, recipe, out / method, SEED, on_event=display.on_event)
    seconds = sum(metrics.seconds for metrics in result.history)
    return Row(method, result.history[-1].test_accuracy, peak, seconds)


def _table(rows: list[Row]) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column("method")
    for heading in ("test accuracy", f"peak memory, batch {MEMORY_BATCH}", "training time"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            NAMES[row.method], f"{100 * row.accuracy:.2f} %", f"{row.peak_bytes / 1e6:,.0f} MB", f"{row.seconds:.0f} s"
        )
    return table
