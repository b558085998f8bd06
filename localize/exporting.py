"""What a localized model is written as: the user's way to :mod:`localize.export`, which stands on a higher floor."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

from passes.errors import LocalizeError

ViewKind = Literal["primary", "local", "auxiliary", "full"]
"""What is shown: the primary network alone; local modules, each with its loss; what trains them, with local modules as
single boxes; or all of it."""
VIEWS: tuple[ViewKind, ...] = get_args(ViewKind)


class ExportError(LocalizeError):
    """A localized model cannot be written so."""


Exporter = Callable[..., Path]
"""What :meth:`Exporting.export` asks, with the localized model before its own arguments."""


class Exporting:
    """A localized model that can be written in forms that people and other programs read."""

    made: Any = None
    """What it was compiled from (:class:`localize.emit.Made`)."""
    _exporter: Exporter | None = None

    def export_by(self, exporter: Exporter | None) -> None:
        """Sets what :meth:`export` asks."""
        self._exporter = exporter

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
        assert self._exporter is not None, "localize() says what exports are made by"
        return self._exporter(self, path, format=format, view=view, module=module, fold=fold, force=force)
