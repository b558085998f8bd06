"""What a localized model is written as: the user's way to :mod:`localize.export`, which stands on a higher floor."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import networkx as nx

from passes.errors import LocalizeError

ViewKind = Literal["primary", "local", "auxiliary", "full"]
"""What is shown: the primary network alone; local modules, each with its loss; what trains them, with local modules as
single boxes; or all of it."""
VIEWS: tuple[ViewKind, ...] = get_args(ViewKind)


class ExportError(LocalizeError):
    """A localized model cannot be written so."""


class Exporter(Protocol):
    """What makes exports: functions that take the localized model before the arguments of their namesakes below."""

    @property
    def export(self) -> Callable[..., Path]:
        """Of :meth:`Exporting.export`."""

    @property
    def to_networkx(self) -> Callable[..., nx.MultiDiGraph[str]]:
        """Of :meth:`Exporting.to_networkx`."""

    @property
    def add_graph(self) -> Callable[..., None]:
        """Of :meth:`Exporting.add_graph`."""


class Exporting:
    """A localized model that can be written in forms that people and other programs read."""

    made: Any = None
    """What it was compiled from (:class:`localize.compiler.emit.Made`)."""
    _exporter: Exporter | None = None

    def export_by(self, exporter: Exporter | None) -> None:
        """Sets what makes exports."""
        self._exporter = exporter

    @property
    def _exports(self) -> Exporter:
        assert self._exporter is not None, "localize() says what exports are made by"
        return self._exporter

    def export(
        self,
        path: str | PathLike[str],
        *,
        format: str | None = None,
        view: ViewKind | None = None,
        module: int | None = None,
        fold: bool = False,
        force: bool = False,
    ) -> Path:
        """Writes the model for those who would rather look than read, or for another program.

        The file is written whole or not at all.

        Args:
            path: The file. Its suffix says the format: ``.dot``, ``.svg``, ``.png``, ``.pdf``, ``.html``, ``.json``,
                ``.graphml``, ``.onnx``, ``.pt2`` or ``.py``.
            format: The format, where the suffix is another one.
            view: What is shown: ``"primary"``, the network alone; ``"local"``, local modules with their losses;
                ``"auxiliary"``, the auxiliary networks; ``"full"``, all. By default what the format is for.
            module: Index of a local module, to show that one alone.
            fold: Draws consecutive local modules that are alike once, with their number.
            force: Whether a file that exists is replaced.

        Returns:
            The path.

        Raises:
            ExportError: The format is unknown or has no such view, the file exists, or a program or package that the
                format needs is missing: the message says how to get it.
        """
        return self._exports.export(self, path, format=format, view=view, module=module, fold=fold, force=force)

    def to_networkx(
        self, *, view: ViewKind = "full", module: int | None = None, fold: bool = False
    ) -> nx.MultiDiGraph[str]:
        """The model as a graph of layers, auxiliary networks and losses.

        Nodes have ``kind`` (``"layer"``, ``"block"``, ``"head"``, ``"loss"``, ...), ``label``, ``module`` (index of the
        local module), ``group`` (the frames that it stands in), and what the plan knows of them: ``name``,
        ``parameters``, ``macs``, ``output`` and so on. Edges have ``kind``: ``"cut"`` where a value is detached.

        Args:
            view: As for :meth:`export`.
            module: Index of a local module, to have that one alone, its layers as operations.
            fold: As for :meth:`export`.

        Raises:
            ExportError: There is no such view or module.
        """
        return self._exports.to_networkx(self, view=view, module=module, fold=fold)

    def add_graph(self, writer: Any, *, view: ViewKind = "full", fold: bool = False) -> None:
        """Writes the model to TensorBoard, whose graphs tab then shows local modules as boxes that open.

        Args:
            writer: A ``torch.utils.tensorboard.SummaryWriter``.
            view: As for :meth:`export`.
            fold: As for :meth:`export`.

        Raises:
            ExportError: TensorBoard is not installed, or ``writer`` is none of its writers.
        """
        self._exports.add_graph(self, writer, view=view, fold=fold)
