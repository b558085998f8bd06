"""Flags of ``train`` for how gradients become updates."""

from __future__ import annotations

from typing import Annotated

import typer

from localize.cli import names as _names
from localize.cli.completion import one_of

AccumulateOption = Annotated[
    int, typer.Option(help="Micro-batches that a batch is split into: activations are kept of one at a time.")
]
ClipOption = Annotated[float | None, typer.Option(help="Largest norm of gradients; larger ones are scaled down.")]
ClipByOption = Annotated[
    str,
    typer.Option(
        help="What that norm is of: global, or module, each by itself.", autocompletion=one_of(_names.CLIP_BY)
    ),
]
EmaOption = Annotated[
    float | None,
    typer.Option(help="Decay of a moving average of the weights, which is evaluated and saved.", metavar="DECAY"),
]
StepOption = Annotated[
    str,
    typer.Option(
        help="batch, or module: each module's weights are updated right after its own backward.",
        autocompletion=one_of(_names.STEPS),
    ),
]
MemoryBudgetOption = Annotated[
    str | None,
    typer.Option(
        help="Most memory that a step may take, such as 4GB: activations are computed again where it would take more."
    ),
]
