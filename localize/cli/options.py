"""Options that several commands take, with their completions. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from localize.cli import names as _names
from localize.cli.completion import models, one_of

MODEL_HELP = (
    "timm:NAME, torchvision:NAME, localize:cifar_resnetDEPTH (such as localize:cifar_resnet20), or path.py:callable, "
    "which runs that file as your own code and calls the function, with num_classes=... if it takes it."
)
DATA_HELP = (
    "digits (scikit-learn's, embedded), fashion-mnist:DIR (the four idx files), or a folder with train/CLASS/*.jpg and "
    "test/CLASS/*.jpg (or val)."
)

ModelOption = Annotated[str, typer.Option("--model", help=MODEL_HELP, autocompletion=models)]
ModelArgument = Annotated[str, typer.Argument(help=MODEL_HELP, metavar="MODEL", autocompletion=models)]
ModelsArgument = Annotated[list[str], typer.Argument(help=MODEL_HELP, metavar="MODEL...", autocompletion=models)]
DataOption = Annotated[str, typer.Option("--data", help=DATA_HELP, autocompletion=one_of(_names.DATA))]
MethodOption = Annotated[
    str,
    typer.Option("--method", help="Learning rule; bp is plain backpropagation.", autocompletion=one_of(_names.METHODS)),
]
DepthOption = Annotated[int, typer.Option("-d", "--depth", help="Depth of the auxiliary networks, the head included.")]
ModulesOption = Annotated[int | None, typer.Option(help="Local modules K; by default the method decides.")]
EpochsOption = Annotated[int, typer.Option(help="Passes over the training set.")]
BatchSizeOption = Annotated[int, typer.Option(help="Images per step.")]
LrOption = Annotated[
    float | None, typer.Option(help="Peak learning rate; by default 0.8 * batch size / 1024 (adam, adamw: 0.001).")
]
OptimizerOption = Annotated[
    str,
    typer.Option(help="sgd (Nesterov momentum 0.9), adam or adamw.", autocompletion=one_of(_names.OPTIMIZERS)),
]
WeightDecayOption = Annotated[float, typer.Option(help="Weight decay.")]
AmpOption = Annotated[
    str | None,
    typer.Option(
        help="bfloat16: forward passes under autocast; weights stay float32.",
        metavar="DTYPE",
        autocompletion=one_of(_names.AUTOCAST),
    ),
]
ChannelsLastOption = Annotated[bool, typer.Option("--channels-last", help="Images and weights with channels last.")]
RuntimeOption = Annotated[
    str,
    typer.Option(
        help="How steps run: plain; compile, alike blocks compiled once; auto, by device.",
        autocompletion=one_of(_names.RUNTIMES),
    ),
]
SeedOption = Annotated[
    int, typer.Option(min=0, max=2**63 - 1, help="Seed of the weights, the order of images and their augmentation.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default a GPU if there is one.")]
LimitOption = Annotated[
    int | None, typer.Option(help="Train on N images, as many of each class, and test on N // 5.", metavar="N")
]
TestLimitOption = Annotated[int | None, typer.Option(help="Test on N images, as many of each class.", metavar="N")]
ImageSizeOption = Annotated[
    int | None, typer.Option(min=1, help="Pixels a side; by default what fits images and model.")
]
ClassesOption = Annotated[int | None, typer.Option(min=1, help="Outputs of the model; by default its own choice.")]
MaxCutOption = Annotated[
    int | None, typer.Option(min=1, help="Most tensors that cross from one local module to the next.")
]
GranularityOption = Annotated[
    str | None,
    typer.Option(
        help="What a layer is: minimal, block, or modules after which to cut: NAME,NAME,...",
        autocompletion=one_of(_names.GRANULARITIES),
    ),
]
OutputOption = Annotated[
    str | None, typer.Option(help="Which value to train, where a model returns several: a key, or an index.")
]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder for the files of the run.", show_default="runs/MODEL-METHOD-dD")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue the run in the folder.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite the run in the folder.")]
FoldOption = Annotated[bool, typer.Option("--fold", help="Show local modules that are alike once, with their number.")]


def cutting(max_cut: int | None, granularity: str | None, output: str | None) -> dict[str, Any]:
    """Return the options that say where to cut, as keyword arguments of :func:`localize.localize`."""
    units = granularity if granularity in (None, "minimal", "block") else tuple(granularity.split(","))
    chosen = int(output) if output is not None and output.lstrip("-").isdecimal() else output
    keywords = {"max_cut": max_cut, "granularity": units, "output": chosen}
    return {name: value for name, value in keywords.items() if value is not None}
