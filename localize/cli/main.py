"""The commands of ``localize-cli`` and their flags; the work of each is in a file of its own.

Heavy imports stay inside the commands, so that help appears at once.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from localize.cli import names as _names
from localize.cli.bench import bench
from localize.cli.completion import one_of, whole_words
from localize.cli.exit_codes import EXIT_INTERRUPTED, code_of
from localize.cli.export import export
from localize.cli.help import PROGRAM, command, epilog
from localize.cli.inspect import inspect
from localize.cli.options import (
    AmpOption,
    BatchSizeOption,
    ChannelsLastOption,
    ClassesOption,
    DataOption,
    DepthOption,
    DeviceOption,
    EpochsOption,
    ForceOption,
    GranularityOption,
    ImageSizeOption,
    LimitOption,
    LrOption,
    MaxCutOption,
    MethodOption,
    ModelArgument,
    ModelOption,
    ModelsArgument,
    ModulesOption,
    OptimizerOption,
    OutOption,
    OutputOption,
    ResumeOption,
    RuntimeOption,
    SeedOption,
    TestLimitOption,
    WeightDecayOption,
    cutting,
)
from localize.cli.update_flags import (
    AccumulateOption,
    ClipByOption,
    ClipOption,
    EmaOption,
    MemoryBudgetOption,
    StepOption,
)

app = typer.Typer(
    name=PROGRAM,
    help="Train neural networks by supervised local learning: every local module by a loss of its own.",
    epilog=epilog(""),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@command(app, free=True)
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
    model) and checkpoint.pt. Ctrl-C stops after the current step; --resume continues from there.
    """
    from localize.cli.method_flags import options_of
    from localize.cli.train import check_folder, default_folder, device_of, prepare, run
    from localize.plan.memory_budget import MemoryBudget
    from localize.plan.memory_forecast import Schedule
    from localize.runtime.options import read_runtime
    from localize.training.recipe import Recipe

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
    local, images = prepare(model, data, method, depth, options, modules, seed, image_size, limits)
    local.runtime = how
    run(local, images, recipe, folder, seed, place, resume=resume)


@command(app)
def methods(
    name: Annotated[
        str | None,
        typer.Argument(help="A method; by default all.", metavar="METHOD", autocompletion=one_of(_names.METHODS)),
    ] = None,
) -> None:
    """List the methods, or the options of one, which are flags of train."""
    from localize.cli.method_flags import flags, summary
    from localize.methods import METHODS

    for method in [name] if name else METHODS:
        typer.echo(f"{method}: {summary(method)}")
        for flag, default, meaning in flags(method) if name else ():
            typer.echo(f"\n  {flag} (default {default})")
            typer.echo(textwrap.fill(meaning, width=80, initial_indent="    ", subsequent_indent="    "))


@command(app)
def check(
    models: ModelsArgument,
    method: MethodOption = "auglocal",
    depth: DepthOption = 4,
    max_cut: MaxCutOption = None,
    granularity: GranularityOption = None,
    output: OutputOption = None,
    image_size: ImageSizeOption = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per line, a model each.")] = False,
) -> None:
    """Say how models localize, or list every obstacle; exit code 1 if a model does not localize.

    Submodules that cannot be traced are named. They are kept whole, and a model localizes all the same. Models
    are built without memory for their parameters, so large ones cost no more than small ones.
    """
    from localize.bench.sweep.record import ExamineSettings
    from localize.cli.check import run_check

    settings = ExamineSettings(method=method, d=depth, **cutting(max_cut, granularity, output))
    passed = run_check(models, settings, image_size, as_json=json)
    if not passed:
        raise typer.Exit(1)


command(app, free=True)(inspect)
command(app, free=True)(export)


@command(app, free=True)
def memory(
    context: typer.Context,
    model: ModelArgument,
    method: MethodOption = "auglocal",
    depth: DepthOption = 4,
    modules: ModulesOption = None,
    batch_size: BatchSizeOption = 256,
    budget: Annotated[str | None, typer.Option(help="Find the largest batch that fits: 8GB, 8GiB, 512MB.")] = None,
    optimizer: OptimizerOption = "sgd",
    step: Annotated[
        str,
        typer.Option(
            help="Updates: batch, at the end; or module, each after its backward.",
            autocompletion=one_of(_names.STEPS),
        ),
    ] = "batch",
    amp: AmpOption = None,
    dtype: Annotated[str | None, typer.Option(help="Of weights and images, such as bfloat16.")] = None,
    classes: ClassesOption = None,
    image_size: ImageSizeOption = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Forecast the memory of a training step, module by module, next to backpropagation with and without checkpointing.

    Nothing is computed and no weights are made. The method's own options are flags, as in train.
    """
    from localize.cli.load import ModelRequest
    from localize.cli.memory import run_memory
    from localize.cli.method_flags import options_of

    keywords = {"method": method, "d": depth, "modules": modules, **options_of(method, depth, context.args, "memory")}
    settings = {"optimizer": optimizer, "step": step, "amp": amp, "dtype": dtype}
    run_memory(ModelRequest(model, keywords, classes, image_size), batch_size, settings, budget, as_json=json)


@command(app)
def sweep(
    source: Annotated[
        str, typer.Option(help="timm, torchvision or all.", autocompletion=one_of(_names.SOURCES))
    ] = "all",
    patterns: Annotated[
        list[str] | None, typer.Option("--filter", help="Models whose name matches, such as 'vit_*'; repeatable.")
    ] = None,
    method: MethodOption = "auglocal",
    depth: DepthOption = 3,
    max_cut: MaxCutOption = None,
    granularity: GranularityOption = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Worker processes; by default one per core.")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds after which a model is given up.")] = 600,
    out: Annotated[Path, typer.Option(help="File of records, JSON lines; an existing file is continued.")] = Path(
        "runs/sweep.jsonl"
    ),
    summary: Annotated[Path | None, typer.Option(help="File for a report, markdown.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Examine again what did not localize.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Localize every model of timm and torchvision, and run one training step of each on fake tensors.

    Nothing is computed and no weights are made. Verifies that each local loss reaches exactly its own parameters.
    After Ctrl-C the same command continues from the file.
    """
    from localize.bench.sweep.record import ExamineSettings
    from localize.cli.sweep import run_sweep

    settings = ExamineSettings(method=method, d=depth, **cutting(max_cut, granularity, None))
    run_sweep(settings, source, patterns or [], jobs, timeout, out, summary, retry=retry, force=force)


@command(app)
def demo(
    epochs: Annotated[int, typer.Option(help="Passes over the training set, for each method.")] = 10,
    out: Annotated[
        Path, typer.Option(help="Folder for the files of all runs; files of an earlier demo are replaced.")
    ] = Path("runs/demo"),
) -> None:
    """Train a small ResNet on handwritten digits by AugLocal, backpropagation and checkpointing, and compare them."""
    from localize.cli.demo import run_demo

    run_demo(epochs, out)


command(app)(bench)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit; an error that the user can mend is printed in one line, with exit code 2."""
    given = None if arguments is None else list(arguments)
    try:
        with whole_words():
            code = app(args=given, prog_name=PROGRAM, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except Exception as error:
        code = code_of(error)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
