"""The table of formats, and ``export``, which picks one, checks the request, and writes the whole file or nothing."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import networkx as nx

from localize.export.drawing.dot import write_dot
from localize.export.drawing.graphml import graph_of, write_graphml
from localize.export.drawing.graphviz import write_pdf, write_png, write_svg
from localize.export.drawing.tensorboard import write_graph
from localize.export.page.page import write_page
from localize.export.programs.exported_program import write_program
from localize.export.programs.onnx_model import write_onnx
from localize.export.python.source import write_python
from localize.export.request import Request, View
from localize.files import atomic_write
from localize.runtime.exporting import VIEWS, ExportError, ViewKind
from localize.runtime.local_graph import LocalGraphModule

_DRAWN: tuple[ViewKind, ...] = ("full", "primary", "local", "auxiliary")


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One file format."""

    what: str
    """Description of the format in a few words, for help texts."""
    write: Callable[[Request], bytes]
    """Function that returns the content of the file."""
    views: tuple[ViewKind, ...]
    """Views that the format offers; the first is the default."""
    parts: bool = False
    """Whether it can show a single module, and fold modules that are alike."""
    values: bool = False
    """Whether the weights must have values: a model on the meta device has shapes alone."""


def write_plan(request: Request) -> bytes:
    """Write the plan as JSON: :meth:`localize.Plan.from_json` reads it, ``plan.schema.json`` describes it."""
    return (request.local.plan.to_json() + "\n").encode("utf-8")


FORMATS: Mapping[str, Format] = {
    "dot": Format(what="a graph in Graphviz's language", write=write_dot, views=_DRAWN, parts=True),
    "svg": Format(what="a picture, by Graphviz", write=write_svg, views=_DRAWN, parts=True),
    "png": Format(what="a picture of pixels, by Graphviz", write=write_png, views=_DRAWN, parts=True),
    "pdf": Format(what="a picture for print, by Graphviz", write=write_pdf, views=_DRAWN, parts=True),
    "html": Format(what="a page for browsers, in one file", write=write_page, views=_DRAWN, parts=True),
    "graphml": Format(what="a graph for networkx, Gephi or yEd", write=write_graphml, views=_DRAWN, parts=True),
    "json": Format(what="the plan, every decision of it", write=write_plan, views=("full",)),
    "onnx": Format(
        what="the network for other runtimes and viewers", write=write_onnx, views=("primary", "local"), values=True
    ),
    "pt2": Format(what="a program of torch.export", write=write_program, views=("primary", "local"), values=True),
    "py": Format(what="Python source that imports torch alone", write=write_python, views=("full",)),
}
"""All formats by name; the name is the suffix of the file too."""


def to_networkx(
    local: LocalGraphModule, *, view: ViewKind | None = None, module: int | None = None, fold: bool = False
) -> nx.MultiDiGraph[str]:
    """Return a localized model as a graph; see :meth:`localize.LocalGraphModule.to_networkx`.

    >>> import torch
    >>> from localize import localize
    >>> from localize.models import cifar_resnet
    >>> graph = to_networkx(localize(cifar_resnet(8, width=4), d=2, example_inputs=torch.zeros(2, 3, 32, 32)))
    >>> graph.nodes["layer_0"]["kind"], graph.nodes["layer_0"]["name"]
    ('layer', 'conv1')
    """
    return graph_of(Request(local, checked_view(local, "graphml", FORMATS["graphml"], view, module, fold)))


def add_graph(local: LocalGraphModule, writer: Any, *, view: ViewKind | None = None, fold: bool = False) -> None:
    """Write a localized model to TensorBoard; see :meth:`localize.LocalGraphModule.add_graph`."""
    write_graph(Request(local, checked_view(local, "graphml", FORMATS["graphml"], view, None, fold)), writer)


def export(
    local: LocalGraphModule,
    path: str | PathLike[str],
    *,
    format: str | None = None,
    view: ViewKind | None = None,
    module: int | None = None,
    fold: bool = False,
    force: bool = False,
) -> Path:
    """Write a localized model to a file; see :meth:`localize.LocalGraphModule.export`."""
    target = Path(path)
    name, kind = format_of(target, format)
    request = Request(local, checked_view(local, name, kind, view, module, fold))
    check_target(target, force=force)
    content = kind.write(request)
    atomic_write(target, lambda temporary: temporary.write_bytes(content))
    return target


def format_of(path: Path, name: str | None) -> tuple[str, Format]:
    """Find a format by its name or, without a name, by the suffix of a path.

    >>> format_of(Path("network.svg"), None)[0]
    'svg'

    Args:
        path: The file to write.
        name: Name of the format; None to go by the suffix of ``path``.

    Returns:
        The name of the format, and its entry in ``FORMATS``.

    Raises:
        ExportError: Neither a format of this name nor one of this suffix exists.
    """
    wanted = (name or path.suffix.removeprefix(".")).lower()
    if wanted in FORMATS:
        return wanted, FORMATS[wanted]
    close = difflib.get_close_matches(wanted, FORMATS, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    known = f"{hint}Formats: {', '.join(FORMATS)}"
    if name is None and not wanted:
        raise ExportError(f"the format of {path} is not known", why="its name has no suffix", remedy=known)
    raise ExportError(f"unknown format {wanted!r}", remedy=known)


def checked_view(
    local: LocalGraphModule, name: str, kind: Format, view: str | None, module: int | None, fold: bool
) -> View:
    """Check what is to be shown, and fill in the default view.

    Args:
        local: The localized model.
        name: Name of the format, for errors.
        kind: The format.
        view: Name of the view; None for the first view of the format.
        module: Index of the only local module to show; None for all.
        fold: Whether consecutive local modules that are alike are drawn once.

    Raises:
        ExportError: The format does not offer this view, single modules or folding, or the model has no module of
            this index.
    """
    if view is not None and view not in VIEWS:
        raise ExportError(f"unknown view {view!r}", remedy=f"Views: {', '.join(VIEWS)}")
    chosen: Any = view or kind.views[0]
    if chosen not in kind.views:
        raise ExportError(f"{name} has no view {chosen!r}", remedy=f"Its views: {', '.join(kind.views)}")
    if (module is not None or fold) and not kind.parts:
        raise ExportError(
            f"{name} has neither a single module nor folding",
            why=f"it is {kind.what}",
            remedy=f"Formats that have: {', '.join(key for key, each in FORMATS.items() if each.parts)}",
        )
    count = len(local.plan.modules)
    if module is not None and (isinstance(module, bool) or not isinstance(module, int) or not 0 <= module < count):
        raise ExportError(f"module must be an integer from 0 to {count - 1}, got {module!r}")
    return View(kind=chosen, module=module, fold=fold)


def check_target(path: Path, *, force: bool) -> None:
    """Check that a file can be written, and that it replaces another one only if asked to.

    Args:
        path: The file to write.
        force: Whether an existing file may be replaced.

    Raises:
        ExportError: ``path`` is a folder, is a file and ``force`` is false, or its folder does not exist.
    """
    if path.is_dir():
        raise ExportError(f"{path} is a folder", remedy="Give the name of a file")
    if path.exists() and not force:
        raise ExportError(f"{path} exists", remedy="Give another name, or force (--force) to replace it")
    if not path.parent.is_dir():
        raise ExportError(f"the folder {path.parent} does not exist", remedy="Make it first")
