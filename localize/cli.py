"""The command line: ``localize-cli train``, ``check`` and ``demo``. The one place that prints.

Heavy imports stay inside the commands, so that help comes at once.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from passes.errors import LocalizeError

if TYPE_CHECKING:
    from localize import LocalGraphModule
    from localize.runtime.data import Data
    from localize.runtime.recipe import Recipe

MODEL_HELP = (
    "timm:NAME, torchvision:NAME, localize:cifar_resnetDEPTH (such as localize:cifar_resnet20), or path.py:callable, "
    "which runs that file as your own code and calls the function, with num_classes=... if it takes it."
)
DATA_HELP = (
    "digits (scikit-learn's, embedded), fashion-mnist:DIR (the four idx files), or a folder with train/CLASS/*.jpg and "
    "test/CLASS/*.jpg (or val)."
)

EXIT_ERROR, EXIT_INTERRUPTED = 2, 130

app = typer.Typer(
    name="localize-cli",
    help="Train neural networks by supervised local learning: every local module by a loss of its own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ModelArgument = Annotated[str, typer.Argument(help=MODEL_HELP, metavar="MODEL")]
ModelOption = Annotated[str, typer.Option("--model", help=MODEL_HELP)]
DataOption = Annotated[str, typer.Option("--data", help=DATA_HELP)]
MethodOption = Annotated[str, typer.Option("--method", help="Learning rule; bp is plain backpropagation.")]
DepthOption = Annotated[int, typer.Option("-d", "--depth", help="Depth of the auxiliary networks, the head included.")]
ModulesOption = Annotated[int | None, typer.Option(help="Local modules K; by default the method decides.")]
EpochsOption = Annotated[int, typer.Option(help="Passes over the training set.")]
BatchSizeOption = Annotated[int, typer.Option(help="Images per step.")]
LrOption = Annotated[
    float | None, typer.Option(help="Peak learning rate; by default 0.8 * batch size / 1024 (adam, adamw: 0.001).")
]
OptimizerOption = Annotated[str, typer.Option(help="sgd (Nesterov momentum 0.9), adam or adamw.")]
WeightDecayOption = Annotated[float, typer.Option(help="Weight decay.")]
SeedOption = Annotated[
    int, typer.Option(min=0, max=2**63 - 1, help="Of the weights, the order of images and their augmentation.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default a GPU if there is one.")]
LimitOption = Annotated[
    int | None, typer.Option(help="Train on N images, as many of each class, and test on N // 5.", metavar="N")
]
TestLimitOption = Annotated[int | None, typer.Option(help="Test on N images, as many of each class.", metavar="N")]
ImageSizeOption = Annotated[
    int | None, typer.Option(min=1, help="Pixels a side; by default what images and model agree on.")
]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder for the files of the run.", show_default="runs/MODEL-METHOD-dD")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite the run in the folder.")]


@app.command()
def train(
    model: ModelOption,
    data: DataOption,
    method: MethodOption = "auglocal",
    depth: DepthOption = 4,
    modules: ModulesOption = None,
    epochs: EpochsOption = 400,
    batch_size: BatchSizeOption = 1024,
    lr: LrOption = None,
    optimizer: OptimizerOption = "sgd",
    weight_decay: WeightDecayOption = 1e-4,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    limit: LimitOption = None,
    test_limit: TestLimitOption = None,
    image_size: ImageSizeOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
    force: ForceOption = False,
) -> None:
    """Train a model; the defaults are the recipe of AugLocal (ICLR 2024).

    Writes metrics.jsonl, metrics.csv, curves.png, plan.json, model.safetensors (the trained weights, for the plain
    model) and checkpoint.pt. Ctrl-C stops after the step at hand; --resume goes on from there.
    """
    from localize.runtime.recipe import Recipe

    recipe = Recipe(epochs=epochs, batch_size=batch_size, lr=lr, optimizer=optimizer, weight_decay=weight_decay)
    _known_method(method)
    place = _device(device)
    folder = out or _default_folder(model, method, depth)
    _check_folder(folder, resume=resume, force=force)
    limits = {"limit": limit, "test_limit": test_limit}
    with _interruptible():
        local, images = _prepare(model, data, method, depth, modules, seed, image_size, limits)
        _run(local, images, recipe, folder, seed, place, resume=resume)


@app.command()
def check(model: ModelArgument, image_size: ImageSizeOption = None) -> None:
    """Say everything that keeps a model from being localized; exit code 1 if there is anything."""
    import torch

    from localize import check as obstacles_of
    from localize.runtime.models import find_model, input_channels

    network = find_model(model).build(classes=1000, image_size=image_size)
    example = None if image_size is None else torch.zeros(2, input_channels(network), image_size, image_size)
    obstacles = obstacles_of(network, example_inputs=example)
    for obstacle in obstacles:
        typer.echo(str(obstacle))
    if obstacles:
        raise typer.Exit(1)
    typer.echo(f"{model}: no obstacle, it can be localized")


@app.command()
def demo(
    epochs: Annotated[int, typer.Option(help="Passes over the training set, for each method.")] = 10,
    out: Annotated[
        Path, typer.Option(help="Folder for the files of both runs; what a demo wrote there is replaced.")
    ] = Path("runs/demo"),
) -> None:
    """Train a small CIFAR-style ResNet on handwritten digits, by AugLocal and by backpropagation, and compare."""
    from localize._demo import run_demo

    with _interruptible():
        run_demo(epochs, out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``localize-cli``: runs a command and exits; every user's error is one line and exit code 2."""
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="localize-cli", standalone_mode=False)
    except LocalizeError as error:
        code = _complain(str(error))
    except OSError as error:  # no space, no permission, ...
        code = _complain(str(error))
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except Exception as error:
        if not hasattr(error, "format_message"):  # how typer's usage errors are told from bugs, in every version of it
            raise
        if not error.format_message().strip():  # help was shown instead
            sys.exit(0)
        code = _complain(f"{error.format_message()} (see localize-cli --help)")
    sys.exit(code if isinstance(code, int) else 0)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turns Ctrl-C into one line and an exit code; says where the run is saved, if it had begun."""
    try:
        yield
    except KeyboardInterrupt as stop:
        typer.echo(str(stop) or "interrupted", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _complain(message: str) -> int:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    return EXIT_ERROR


def _known_method(method: str) -> None:
    """Refuses an unknown method before any model is built."""
    from localize.methods import get_method

    get_method(method)


def _device(name: str | None) -> str:
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # torch's answers to an unknown, an absent and an uncompiled device
        raise LocalizeError(f"no device {name!r}", why=str(error).splitlines()[0]) from error
    return name


def _default_folder(model: str, method: str, depth: int) -> Path:
    name = (
        model.partition(":")[2]
        if model.partition(":")[0] in ("timm", "torchvision", "localize")
        else Path(model).name.replace(".py:", "-")
    )
    rule = method if method == "bp" else f"{method}-d{depth}"  # backpropagation has no auxiliary networks
    return Path("runs") / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}-{rule}"


def _check_folder(folder: Path, *, resume: bool, force: bool) -> None:
    """Refuses a folder that a run must not go to; makes none."""
    from localize.runtime.trainer import CHECKPOINT

    if resume and force:
        raise LocalizeError("--resume and --force contradict each other")
    if folder.exists() and not folder.is_dir():
        raise LocalizeError(f"{folder} is a file, not a folder", remedy="Give another --out")
    if resume and not (folder / CHECKPOINT).is_file():
        raise LocalizeError(f"nothing to resume in {folder}", remedy="Start without --resume")
    if not resume and not force and folder.is_dir() and any(folder.iterdir()):
        raise LocalizeError(
            f"folder {folder} is not empty", remedy="Go on with --resume, overwrite with --force, or give another --out"
        )


def _prepare(
    model: str,
    data: str,
    method: str,
    depth: int,
    modules: int | None,
    seed: int,
    image_size: int | None,
    limits: dict[str, int | None],
) -> tuple[LocalGraphModule, Data]:
    """Builds and localizes the model and loads the data, cheap checks first."""
    import torch

    from localize import localize
    from localize.runtime.data import load_data
    from localize.runtime.models import find_model, input_channels, input_size
    from localize.runtime.sources import open_source

    factory = find_model(model)
    source = open_source(data)
    torch.manual_seed(seed)
    network = factory.build(len(source.classes), image_size)
    channels = input_channels(network)
    side = image_size or input_size(network, source.native_size, channels)
    height, width = (side, side) if side else source.native_size or (0, 0)
    example = torch.zeros(2, channels, height, width)
    local = localize(network, method, d=depth, modules=modules, example_inputs=example, seed=seed)
    return local, load_data(source, image_size=side, channels=channels, **limits)


def _run(
    local: LocalGraphModule, data: Data, recipe: Recipe, folder: Path, seed: int, device: str, *, resume: bool
) -> None:
    """Trains and shows progress."""
    from localize._display import Display
    from localize.runtime.trainer import train as run_training

    with Display(recipe) as display:
        result = run_training(local, data, recipe, folder, seed, device, resume, display.on_event)
    typer.echo(f"test accuracy {100 * result.history[-1].test_accuracy:.2f} %, files in {folder}")


if __name__ == "__main__":
    main()
