"""The command line: ``localize-cli train``, ``methods``, ``check``, ``memory``, ``sweep``, ``bench``, ``demo``.

Heavy imports stay inside the commands, so that help comes at once.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localize._bench import bench
from localize._updates import (
    AccumulateOption,
    ClipByOption,
    ClipOption,
    EmaOption,
    MemoryBudgetOption,
    StepOption,
)
from passes.errors import LocalizeError

if TYPE_CHECKING:
    from localize.runtime.examine import Settings

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
AmpOption = Annotated[
    str | None, typer.Option(help="bfloat16: forward passes under autocast; weights stay float32.", metavar="DTYPE")
]
ChannelsLastOption = Annotated[bool, typer.Option("--channels-last", help="Images and weights with channels last.")]
RuntimeOption = Annotated[
    str, typer.Option(help="How steps run: plain; compile, alike blocks compiled once; auto, by device.")
]
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
MaxCutOption = Annotated[
    int | None, typer.Option(min=1, help="Most tensors that cross from one local module to the next.")
]
GranularityOption = Annotated[
    str | None, typer.Option(help="What a layer is: minimal, block, or modules after which to cut: NAME,NAME,...")
]
OutputOption = Annotated[
    str | None, typer.Option(help="Which value to train, where a model returns several: a key, or an index.")
]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder for the files of the run.", show_default="runs/MODEL-METHOD-dD")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite the run in the folder.")]


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
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
    amp: AmpOption = None,
    channels_last: ChannelsLastOption = False,
    accumulate: AccumulateOption = 1,
    clip: ClipOption = None,
    clip_by: ClipByOption = "global",
    ema: EmaOption = None,
    step: StepOption = "batch",
    memory_budget: MemoryBudgetOption = None,
    runtime: RuntimeOption = "plain",
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

    The method's own options are flags too, such as --tau 0.25; localize-cli methods lists them.

    Writes metrics.jsonl, metrics.csv, curves.png, plan.json, model.safetensors (the trained weights, for the plain
    model) and checkpoint.pt. Ctrl-C stops after the step at hand; --resume goes on from there.
    """
    from localize import MemoryBudget
    from localize._flags import options_of
    from localize._train import check_folder, default_folder, device_of, prepare, run
    from localize.forecast import Schedule
    from localize.runtime.options import read_runtime
    from localize.runtime.recipe import Recipe

    how = read_runtime(runtime)
    recipe = Recipe(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        optimizer=optimizer,
        weight_decay=weight_decay,
        amp=amp,
        channels_last=channels_last,
        accumulate=accumulate,
        clip=clip,
        clip_by=clip_by,
        ema=ema,
        step=step,
    )
    options = options_of(method, depth, context.args)
    place = device_of(device)
    folder = out or default_folder(model, method, depth, options)
    check_folder(folder, resume=resume, force=force)
    limits = {"limit": limit, "test_limit": test_limit}
    if memory_budget is not None:
        at_once = -(-batch_size // accumulate)
        schedule: Schedule = "module" if step == "module" else "batch"
        options["memory_budget"] = MemoryBudget(memory_budget, at_once, optimizer=optimizer, amp=amp, step=schedule)
    with _interruptible():
        local, images = prepare(model, data, method, depth, options, modules, seed, image_size, limits)
        local.runtime = how
        run(local, images, recipe, folder, seed, place, resume=resume)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="A method; by default all.", metavar="METHOD")] = None,
) -> None:
    """List the methods, or the options of one, which are flags of train."""
    from localize._flags import flags, summary
    from localize.methods import METHODS

    for method in [name] if name else METHODS:
        typer.echo(f"{method}: {summary(method)}")
        for flag, default, meaning in flags(method) if name else ():
            typer.echo(f"\n  {flag} (default {default})")
            typer.echo(textwrap.fill(meaning, width=80, initial_indent="    ", subsequent_indent="    "))


@app.command()
def check(
    models: Annotated[list[str], typer.Argument(help=MODEL_HELP, metavar="MODEL...")],
    method: MethodOption = "auglocal",
    depth: DepthOption = 4,
    max_cut: MaxCutOption = None,
    granularity: GranularityOption = None,
    output: OutputOption = None,
    image_size: ImageSizeOption = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line and model.")] = False,
) -> None:
    """Say how models localize, or everything that keeps them from it; exit code 1 if anything does.

    Submodules that cannot be traced are named, and are no obstacle: the model localizes with them kept whole. Models
    are built without memory for their parameters, so large ones cost no more than small ones.
    """
    from localize._check import run_check

    settings = _settings(method, depth, max_cut, granularity, output)
    with _interruptible():
        passed = run_check(models, settings, image_size, as_json=json)
    if not passed:
        raise typer.Exit(1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def memory(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help=MODEL_HELP, metavar="MODEL")],
    method: MethodOption = "auglocal",
    depth: DepthOption = 4,
    modules: ModulesOption = None,
    batch_size: BatchSizeOption = 256,
    budget: Annotated[str | None, typer.Option(help="Find the largest batch that fits: 8GB, 8GiB, 512MB.")] = None,
    optimizer: OptimizerOption = "sgd",
    step: Annotated[
        str, typer.Option(help="Updates: batch, at the end; or module, each behind its backward.")
    ] = "batch",
    amp: AmpOption = None,
    dtype: Annotated[str | None, typer.Option(help="Of weights and images, such as bfloat16.")] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="Outputs of the model; by default its own choice.")] = None,
    image_size: ImageSizeOption = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say what a training step takes, module by module, beside backpropagation with and without checkpointing.

    Nothing is computed and no weights are made. The method's own options are flags, as of train.
    """
    from localize._flags import options_of
    from localize._memory import run_memory

    keywords = {"method": method, "d": depth, "modules": modules, **options_of(method, depth, context.args, "memory")}
    settings = {"optimizer": optimizer, "step": step, "amp": amp, "dtype": dtype}
    with _interruptible():
        run_memory(model, keywords, classes, image_size, batch_size, settings, budget, as_json=json)


@app.command()
def sweep(
    source: Annotated[str, typer.Option(help="timm, torchvision or all.")] = "all",
    patterns: Annotated[
        list[str] | None, typer.Option("--filter", help="Models whose name matches, such as 'vit_*'; repeatable.")
    ] = None,
    method: MethodOption = "auglocal",
    depth: DepthOption = 3,
    max_cut: MaxCutOption = None,
    granularity: GranularityOption = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Worker processes; by default one a core.")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for a model.")] = 600,
    out: Annotated[Path, typer.Option(help="File of records, JSON lines; one that exists is gone on with.")] = Path(
        "runs/sweep.jsonl"
    ),
    summary: Annotated[Path | None, typer.Option(help="File for a report, markdown.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Examine anew what did not localize.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Localize every model of timm and torchvision, and run one training step of each on fake tensors.

    Nothing is computed and no weights are made. Verifies that each local loss reaches exactly its own parameters.
    Ctrl-C leaves a file that the same command goes on with.
    """
    from localize._sweep import run_sweep

    settings = _settings(method, depth, max_cut, granularity, None)
    with _interruptible():
        run_sweep(settings, source, patterns or [], jobs, timeout, out, summary, retry=retry, force=force)


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


app.command()(bench)


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


def _settings(method: str, depth: int, max_cut: int | None, granularity: str | None, output: str | None) -> Settings:
    from localize.runtime.examine import Settings

    units = granularity if granularity in (None, "minimal", "block") else tuple(granularity.split(","))
    chosen = int(output) if output is not None and output.lstrip("-").isdecimal() else output
    return Settings(method=method, d=depth, max_cut=max_cut, granularity=units, output=chosen)


if __name__ == "__main__":
    main()
