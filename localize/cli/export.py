"""``localize-cli export``: its flags, and what it does, in the order in which it does it.

Heavy imports stay inside, so that help comes at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localize.cli import names as _names
from localize.cli.completion import one_of
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

if TYPE_CHECKING:
    from localize.cli.load import ModelRequest
    from localize.runtime.local_graph import LocalGraphModule


def export(
    context: typer.Context,
    model: ModelArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write.", metavar="FILE")],
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="By default the file's suffix says it.",
            metavar="FORMAT",
            autocompletion=one_of(_names.FORMATS),
        ),
    ] = None,
    view: Annotated[
        str | None,
        typer.Option(help="By default what the format is for.", metavar="VIEW", autocompletion=one_of(_names.VIEWS)),
    ] = None,
    module: Annotated[int | None, typer.Option(min=0, help="One local module alone.", metavar="K")] = None,
    fold: FoldOption = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file, if it exists.")] = False,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Trained weights to export: model.safetensors or checkpoint.pt of a run, or a file of state_dict().",
            metavar="FILE",
        ),
    ] = None,
    method: MethodOption = "auglocal",
    depth: DepthOption = 4,
    modules: ModulesOption = None,
    max_cut: MaxCutOption = None,
    granularity: GranularityOption = None,
    output: OutputOption = None,
    classes: ClassesOption = None,
    image_size: ImageSizeOption = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of fresh weights.")] = 0,
) -> None:
    """Write a localized model as a picture, a page, a graph, or a network for other programs.

    What draws or lists takes no weights, and models of any size are built without memory for them; onnx and pt2 hold
    weights, which are fresh unless --weights says where trained ones are. The file is written whole or not at all.

    Formats: {formats}.

    Views: {views}.

    The method's own options are flags, as of train. With --weights, give those that the run was given, and --classes.
    """
    from localize.cli.load import ModelRequest
    from localize.cli.method_flags import options_of

    options = options_of(method, depth, context.args, "export")
    cuts = cutting(max_cut, granularity, output)
    keywords = {"method": method, "d": depth, "modules": modules, **cuts, **options}
    asked = ModelRequest(model, keywords, classes, image_size, seed)
    run_export(asked, out, form, view, module, weights, fold=fold, force=force)


if export.__doc__:  # there is none if Python was told to strip such
    export.__doc__ = export.__doc__.format(
        formats="; ".join(f"{name}: {what}" for name, what in _names.FORMATS.items()),
        views="; ".join(f"{name}: {what}" for name, what in _names.VIEWS.items()),
    )


def run_export(
    asked: ModelRequest,
    out: Path,
    form: str | None,
    view: str | None,
    module: int | None,
    weights: Path | None,
    *,
    fold: bool,
    force: bool,
) -> None:
    """Write a file, and print what was written. Cheap checks come first.

    Raises:
        LocalizeError: The model cannot be built or localized, the weights do not fit it, or the format cannot hold it.
        OSError: The file cannot be written.
    """
    from localize.export.formats import check_target, format_of
    from localize.text import format_bytes

    name, kind = format_of(out, form)
    check_target(out, force=force)
    local = _local(asked, weights, values=kind.values)
    shown: Any = view  # any text: the library says which it knows
    path = local.export(out, format=name, view=shown, module=module, fold=fold, force=force)
    typer.echo(f"wrote {path} ({name}: {kind.what}, {format_bytes(path.stat().st_size)})")


def _local(asked: ModelRequest, weights: Path | None, *, values: bool) -> LocalGraphModule:
    """Localize the model, with values only if the format or the weights need them."""
    from localize.cli.load import localized, with_values
    from localize.cli.weights import load_weights, read_weights

    if weights is None:
        return with_values(asked) if values else localized(asked)
    content = read_weights(weights)
    local = with_values(asked)
    load_weights(local, content, weights)
    return local
