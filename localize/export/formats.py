"""The table of formats, and ``export``: choose one, check what is asked, write the file whole or not at all."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import networkx as nx

from localize.export.drawing.dot import dot
from localize.export.drawing.graphs import graph_of, graphml
from localize.export.drawing.graphviz import pdf, png, svg
from localize.export.drawing.tensorboard import write_graph
from localize.export.page.page import page
from localize.export.plan_json import plan_json
from localize.export.programs.exported_program import exported_program
from localize.export.programs.onnx_model import onnx_model
from localize.export.python import python_source
from localize.export.request import ExportError, Request, View
from localize.files import atomic_write
from localize.runtime.exporting import VIEWS, ViewKind
from localize.runtime.local_graph import LocalGraphModule

_DRAWN: tuple[ViewKind, ...] = ("full", "primary", "local", "auxiliary")


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A form of export."""

    what: str
    """In a few words, for help."""
    write: Callable[[Request], bytes]
    """The file's content."""
    views: tuple[ViewKind, ...]
    """Those that it has; the first is the default."""
    parts: bool = False
    """Whether a single module can be asked for, and alike ones folded."""
    values: bool = False
    """Whether it needs a model with weights, not one of shapes alone."""


FORMATS: Mapping[str, Format] = {
    "dot": Format(what="a graph in Graphviz's language", write=dot, views=_DRAWN, parts=True),
    "svg": Format(what="a picture, by Graphviz", write=svg, views=_DRAWN, parts=True),
    "png": Format(what="a picture of pixels, by Graphviz", write=png, views=_DRAWN, parts=True),
    "pdf": Format(what="a picture for print, by Graphviz", write=pdf, views=_DRAWN, parts=True),
    "html": Format(what="a page for browsers, in one file", write=page, views=_DRAWN, parts=True),
    "graphml": Format(what="a graph for networkx, Gephi or yEd", write=graphml, views=_DRAWN, parts=True),
    "json": Format(what="the plan, every decision of it", write=plan_json, views=("full",)),
    "onnx": Format(
        what="the network for other runtimes and viewers", write=onnx_model, views=("primary", "local"), values=True
    ),
    "pt2": Format(what="a program of torch.export", write=exported_program, views=("primary", "local"), values=True),
    "py": Format(what="Python source that imports torch alone", write=python_source, views=("full",)),
}
"""By name, which is the file's suffix too."""


def to_networkx(
    local: LocalGraphModule, *, view: ViewKind | None = None, module: int | None = None, fold: bool = False
) -> nx.MultiDiGraph[str]:
    """The graph of a localized model; see :meth:`localize.LocalGraphModule.to_networkx`."""
    return graph_of(Request(local, checked_view(local, "graphml", FORMATS["graphml"], view, module, fold)))


def add_graph(local: LocalGraphModule, writer: Any, *, view: ViewKind | None = None, fold: bool = False) -> None:
    """Writes a localized model to TensorBoard; see :meth:`localize.LocalGraphModule.add_graph`."""
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
    """Writes a localized model; see :meth:`localize.LocalGraphModule.export`."""
    target = Path(path)
    name, kind = format_of(target, format)
    request = Request(local, checked_view(local, name, kind, view, module, fold))
    check_target(target, force=force)
    content = kind.write(request)
    atomic_write(target, lambda temporary: temporary.write_bytes(content))
    return target


def format_of(path: Path, name: str | None) -> tuple[str, Format]:
    """The format that a name or, without one, the suffix says.

    Raises:
        ExportError: There is no such format.
    """
    asked = (name or path.suffix.removeprefix(".")).lower()
    if asked in FORMATS:
        return asked, FORMATS[asked]
    close = difflib.get_close_matches(asked, FORMATS, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    known = f"{hint}Formats: {', '.join(FORMATS)}"
    if name is None and not asked:
        raise ExportError(f"the format of {path} is not known", why="its name has no suffix", remedy=known)
    raise ExportError(f"unknown format {asked!r}", remedy=known)


def checked_view(
    local: LocalGraphModule, name: str, kind: Format, view: str | None, module: int | None, fold: bool
) -> View:
    """What is to be shown.

    Raises:
        ExportError: The format has no such view, or the model no such module.
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
        raise ExportError(f"there is no local module {module!r}", remedy=f"Modules are 0 to {count - 1}")
    return View(kind=chosen, module=module, fold=fold)


def check_target(path: Path, *, force: bool) -> None:
    """Refuses to write over a file unasked, or where nothing can be written.

    Raises:
        ExportError: The file exists, or its folder does not.
    """
    if path.is_dir():
        raise ExportError(f"{path} is a folder", remedy="Give the name of a file")
    if path.exists() and not force:
        raise ExportError(f"{path} exists", remedy="Give another name, or force (--force) to replace it")
    if not path.parent.is_dir():
        raise ExportError(f"there is no folder {path.parent}", remedy="Make it first")
