"""``localize-cli inspect``: its flags, and its work in order.

Heavy imports stay inside the functions, so that help appears at once.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localize.cli.options import (
    ClassesOption,
    DepthOption,
    FoldOption,
    GranularityOption,
    ImageSizeOption,
    MaxCutOption,
    MethodOption,
    ModelArgument,
    ModulesOption,
    OutputOption,
    cutting,
)
from localize.text import format_numbered

if TYPE_CHECKING:
    from localize.cli.load import Localization, ModelRequest
    from localize.plan.memory_forecast import MemoryForecast
    from localize.plan.plan import Plan
    from localize.runtime.local_graph import LocalGraphModule


def inspect(
    context: typer.Context,
    model: ModelArgument,
    method: MethodOption = "auglocal",
    depth: DepthOption = 4,
    modules: ModulesOption = None,
    max_cut: MaxCutOption = None,
    granularity: GranularityOption = None,
    output: OutputOption = None,
    classes: ClassesOption = None,
    image_size: ImageSizeOption = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Also say what a step of so many images takes in memory; by default not, for speed."),
    ] = None,
    module: Annotated[
        int | None, typer.Option(min=0, help="One local module in full, its generated code too.", metavar="K")
    ] = None,
    why: Annotated[
        bool,
        typer.Option(
            "--why",
            help="Where the network is cut, and why nowhere else; --why NAME: all borders in or next to that module.",
        ),
    ] = False,
    fold: FoldOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: plan, totals, obstacles.")] = False,
) -> None:
    """Show what a model becomes: local modules, auxiliary networks, and their costs beside backpropagation.

    A row says of a local module its layers, output, parameters, MACs and bytes of activations, then its auxiliary
    network: depth, layers copied (3/2 is a copy of layer 3 that halves resolution), and cost. Submodules that cannot be
    traced are named. A model that does not localize has all that is in the way listed, with exit code 1.

    Activation bytes are of what layers give, for one image. What auxiliary networks and everything else take on top, a
    forecast says: --batch-size, or localize-cli memory.

    --why lists every border between two operations: a cut, or the reason why it is none and the flag that lifts it.

    Nothing is computed and no weights are made. The method's own options are flags, as of train.
    """
    from localize.cli.load import ModelRequest
    from localize.cli.method_flags import options_of

    name, arguments = None, context.args
    if why:
        from localize.cli.inspect_why import take_name

        name, arguments = take_name(arguments)
    options = options_of(method, depth, arguments, "inspect")
    cuts = cutting(max_cut, granularity, output)
    keywords = {"method": method, "d": depth, "modules": modules, **cuts, **options}
    asked = ModelRequest(model, keywords, classes, image_size)
    localizes = run_inspect(asked, batch_size, module, name, fold=fold, as_json=as_json)
    if not localizes:
        raise typer.Exit(1)


def run_inspect(
    asked: ModelRequest,
    batch_size: int | None,
    module: int | None,
    why: str | None = None,
    *,
    fold: bool,
    as_json: bool,
) -> bool:
    """Print what a model becomes.

    Args:
        asked: The model.
        batch_size: Images of the step whose memory is forecast; None for no forecast.
        module: Index of the only local module to show, in full; None to show all in a table.
        why: The module whose borders are shown, "" for all borders, None for none.
        fold: Whether alike modules are shown once.
        as_json: One JSON object in place of tables.

    Returns:
        Whether the model localizes.

    Raises:
        LocalizeError: The model is unknown or cannot be built; there is no such local module, no border in or next to
            the module named, or no forecast.
    """
    from localize.cli.inspect_module import check_index
    from localize.cli.inspect_why import borders_of
    from localize.cli.load import try_to_localize

    attempt = try_to_localize(asked)
    local = attempt.local
    forecast = None
    if local is not None and module is not None:
        check_index(local.plan, module)
    if local is not None and why:
        borders_of(local, why)
    if local is not None and batch_size is not None:
        forecast = local.plan.memory(batch_size)
    if as_json:
        typer.echo(json.dumps(record(asked.name, attempt, forecast, module, why)))
    else:
        _show(asked.name, attempt, forecast, module, why, fold=fold)
    return local is not None


def record(
    name: str, attempt: Localization, forecast: MemoryForecast | None, module: int | None, why: str | None = None
) -> dict[str, Any]:
    """Return plan, totals, forecast and obstacles as plain values."""
    from localize.cli.inspect_module import module_record
    from localize.cli.inspect_table import totals
    from localize.cli.inspect_why import why_record

    obstacles = [dataclasses.asdict(obstacle) for obstacle in attempt.obstacles]
    values: dict[str, Any] = {"model": name, "localizes": attempt.local is not None}
    if attempt.local is not None:
        values |= {"plan": json.loads(attempt.local.plan.to_json()), "totals": totals(attempt.local.plan).to_dict()}
        values |= {} if forecast is None else {"memory": forecast.to_dict()}
        values |= {} if module is None else {"module": _plain(module_record(attempt.local, module))}
        values |= {} if why is None else {"borders": why_record(attempt.local, why)}
    return {**values, "obstacles": obstacles}


def _show(
    name: str,
    attempt: Localization,
    forecast: MemoryForecast | None,
    module: int | None,
    why: str | None,
    *,
    fold: bool,
) -> None:
    from localize.cli.inspect_module import print_module
    from localize.cli.inspect_why import print_why
    from localize.cli.terminal import Page

    page = Page()
    if attempt.local is None:
        for obstacle in attempt.obstacles:
            page.text(f"{name}: {obstacle}", hang=2)
        return
    page.text(name)
    page.text(str(attempt.local.plan).split("\n", 1)[0])
    if why is not None:
        print_why(page, attempt.local, why)
        return
    if module is not None:
        print_module(page, attempt.local, module)
        return
    _show_all(page, attempt.local, attempt, forecast, fold=fold)


def _show_all(
    page: Any, local: LocalGraphModule, attempt: Localization, forecast: MemoryForecast | None, *, fold: bool
) -> None:
    from localize.cli.inspect_table import print_modules, print_totals

    plan = local.plan
    page.text(f"L={len(plan.layers)} local layers in K={len(plan.modules)} local modules")
    page.text()
    print_modules(page, plan, fold=fold)
    page.text()
    print_totals(page, plan, forecast)
    for note in notes(plan, forecast):
        page.text(note, hang=2)
    if attempt.obstacles:
        page.title("kept whole, since they cannot be traced")
        for obstacle in attempt.obstacles:
            page.text(str(obstacle), hang=2)


def notes(plan: Plan, forecast: MemoryForecast | None) -> list[str]:
    """Return sentences for below the tables: what sets the peak, and the notes of modules."""
    indices: dict[str, list[int]] = {}
    for module in plan.modules:
        if module.note:
            indices.setdefault(module.note, []).append(module.index)
    if forecast is not None:
        binding = f"module {forecast.binding.index}" if forecast.binding else "the update"
        where = f"{binding} sets the peak; localize-cli memory says more"
        return [f"memory: of {forecast.batch_size} images, {forecast.optimizer}; {where}", *_by_module(indices)]
    return _by_module(indices)


def _by_module(notes: dict[str, list[int]]) -> list[str]:
    return [f"{format_numbered('module', indices)}: {note}" for note, indices in notes.items()]


def _plain(value: Any) -> Any:
    """Return a record with values that JSON lacks written as text."""
    return json.loads(json.dumps(value, default=lambda each: str(each).removeprefix("torch.")))
