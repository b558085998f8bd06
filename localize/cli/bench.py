"""``localize-cli bench``: its flags, and its work in order.

Heavy imports stay inside the functions, so that help appears at once.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localize.cli import names as _names
from localize.cli.completion import models, several_of

if TYPE_CHECKING:
    from localize.bench.report import Report
    from localize.bench.setup import Setup

NAME = "bench"
"""Stem of the names of the files: bench.json, bench.md and bench.png."""


def bench(
    model: Annotated[
        str, typer.Argument(help="Model, as train --model takes it.", metavar="MODEL", autocompletion=models)
    ],
    methods: Annotated[
        str,
        typer.Option(
            help="Methods, separated by commas; bp and checkpoint are what others are compared with.",
            autocompletion=several_of(_names.METHODS),
        ),
    ] = "auglocal,dgl,bp,checkpoint",
    depth: Annotated[
        str, typer.Option("-d", "--depth", help="Depth of the auxiliary networks, or several: 2,4,6.", metavar="D,...")
    ] = "4",
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 64,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Pixels a side; by default what the model says.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of each method that are timed, after a few that are not.")] = 20,
    threads: Annotated[int | None, typer.Option(help="Threads of the CPU; by default torch's choice.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default a GPU if there is one.")] = None,
    amp: Annotated[str | None, typer.Option(help="bfloat16 or float16: autocast.", metavar="DTYPE")] = None,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Images and weights with channels last.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, images and the order of the methods.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the files; earlier files are replaced.", show_default="runs/bench/MODEL"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare methods on one model: memory, time and multiply-accumulates of a training step.

    The methods take turns in one run, so that whatever else the machine does slows all of them alike. Writes
    bench.json, bench.md and bench.png (time against memory, with the Pareto front).
    """
    from localize.bench.setup import Setup
    from localize.cli.train import device_of

    setup = Setup(
        methods=tuple(word.strip() for word in methods.split(",") if word.strip()),
        depths=_depths(depth),
        batch_size=batch_size,
        image_size=image_size,
        steps=steps,
        seed=seed,
        device=device_of(device),
        amp=amp,
        channels_last=channels_last,
        threads=threads,
    )
    run_bench(model, setup, out, as_json=as_json)


def run_bench(model: str, setup: Setup, out: Path | None, *, as_json: bool) -> None:
    """Measure, write the files, and print the table, or with ``as_json`` the content of the JSON file.

    Raises:
        LocalizeError: The model cannot be built or localized, or no benchmark of these settings can be run.
    """
    from localize.bench.measure import measure
    from localize.bench.table import terminal
    from localize.bench.zoo import find_model
    from passes.errors import LocalizeError

    factory = find_model(model)
    folder = out or Path("runs/bench") / re.sub(r"[^A-Za-z0-9_.-]+", "-", factory.name)
    if folder.exists() and not folder.is_dir():
        raise LocalizeError(f"{folder} is a file, not a folder", remedy="Give another --out")
    report = measure(factory, setup, _tell)
    _tell("")
    _write(report, folder)
    typer.echo(report.to_json() if as_json else f"{terminal(report)}\n\nfiles in {folder}")


def _write(report: Report, folder: Path) -> None:
    from localize.bench.picture import draw
    from localize.bench.table import markdown
    from localize.files import atomic_text

    folder.mkdir(parents=True, exist_ok=True)
    atomic_text(folder / f"{NAME}.json", report.to_json() + "\n")
    draw(report, folder / f"{NAME}.png")
    atomic_text(folder / f"{NAME}.md", markdown(report, f"{NAME}.png"))


def _tell(text: str) -> None:
    """Show progress in a line that is written over: at a terminal only, on standard error, apart from the output."""
    if sys.stderr.isatty():
        typer.echo(f"\r\033[K{text}", err=True, nl=False)


def _depths(text: str) -> tuple[int, ...]:
    from passes.errors import LocalizeError

    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise LocalizeError(f"--depth must be whole numbers, such as 4 or 2,4,6, got {text!r}")
    return tuple(int(word) for word in words)
