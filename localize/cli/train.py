"""``localize-cli train``: the work of the command, in order."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import typer

from localize.api import localize
from localize.bench.zoo import find_model, input_channels, input_size
from localize.cli.progress import Display
from localize.methods import get_method, with_depth
from localize.runtime.local_graph import LocalGraphModule
from localize.training.data.batches import Data, load_data
from localize.training.data.sources import open_source
from localize.training.recipe import Recipe
from localize.training.trainer import CHECKPOINT, train
from passes.errors import LocalizeError


def device_of(name: str | None) -> str:
    """Check the name of a device; None means a GPU if there is one, else the CPU.

    Raises:
        LocalizeError: There is no device of this name.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # raised for a device that is unknown, absent or not compiled in
        raise LocalizeError(f"no device {name!r}", why=str(error).splitlines()[0]) from error
    return name


def default_folder(model: str, method: str, depth: int, options: Mapping[str, Any]) -> Path:
    """Return the folder of a run that was given none."""
    name = (
        model.partition(":")[2]
        if model.partition(":")[0] in ("timm", "torchvision", "localize")
        else Path(model).name.replace(".py:", "-")
    )
    has_depth = "d" in with_depth(get_method(method).Options, depth, {})
    rule = f"{method}-d{depth}" if has_depth else method
    chosen = "".join(f"-{key}-{value}" for key, value in options.items())
    return Path("runs") / re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{name}-{rule}{chosen}")


def check_folder(folder: Path, *, resume: bool, force: bool) -> None:
    """Refuse a folder that a run must not write to; no folder is made.

    Raises:
        LocalizeError: The folder is a file, or holds nothing to resume, or is not empty although neither ``resume`` nor
            ``force`` is given, or both are given.
    """
    if resume and force:
        raise LocalizeError("--resume and --force contradict each other")
    if folder.exists() and not folder.is_dir():
        raise LocalizeError(f"{folder} is a file, not a folder", remedy="Give another --out")
    if resume and not (folder / CHECKPOINT).is_file():
        raise LocalizeError(f"nothing to resume in {folder}", remedy="Start without --resume")
    if not resume and not force and folder.is_dir() and any(folder.iterdir()):
        raise LocalizeError(
            f"folder {folder} is not empty",
            remedy="Continue with --resume, overwrite with --force, or give another --out",
        )


def prepare(
    model: str,
    data: str,
    method: str,
    depth: int,
    options: Mapping[str, Any],
    modules: int | None,
    seed: int,
    image_size: int | None,
    limits: dict[str, int | None],
) -> tuple[LocalGraphModule, Data]:
    """Build and localize the model and load the data, cheap checks first."""
    factory = find_model(model)
    source = open_source(data)
    torch.manual_seed(seed)
    network = factory.build(len(source.classes), image_size)
    channels = input_channels(network)
    side = image_size or input_size(network, source.native_size, channels)
    height, width = (side, side) if side else source.native_size or (0, 0)
    example = torch.zeros(2, channels, height, width)
    loaded = None
    if needs_normalization(method, options):
        loaded = load_data(source, image_size=side, channels=channels, **limits)
        options = {**options, "mean": tuple(loaded.mean.tolist()), "std": tuple(loaded.std.tolist())}
    local = localize(network, method, d=depth, modules=modules, example_inputs=example, seed=seed, **options)
    return local, loaded or load_data(source, image_size=side, channels=channels, **limits)


def needs_normalization(method: str, options: Mapping[str, Any]) -> bool:
    """Return whether a method needs the mean and std of the images, and the options do not give them."""
    known = {field.name for field in dataclasses.fields(get_method(method).Options)}
    return {"mean", "std"} <= known and not {"mean", "std"} & options.keys()


def run(
    local: LocalGraphModule, data: Data, recipe: Recipe, folder: Path, seed: int, device: str, *, resume: bool
) -> None:
    """Train, and show progress."""
    if not local.runtime.is_plain:
        typer.echo(local.runtime.describe(torch.device(device).type))
    with Display(recipe) as display:
        result = train(local, data, recipe, folder, seed, device, resume, display.on_event)
    typer.echo(f"test accuracy {100 * result.history[-1].test_accuracy:.2f} %, files in {folder}")
