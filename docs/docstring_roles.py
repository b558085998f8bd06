"""Extension of griffe for the documentation site: names of code in docstrings, such as :class:`Plan`, become `Plan`."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`~?([^`]+)`")


class DocstringRoles(griffe.Extension):
    """Writes roles of reStructuredText, which editors and `help()` know, as Markdown."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        _rewrite(obj)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        _rewrite(pkg)


def _rewrite(obj: griffe.Object) -> None:
    if obj.docstring is not None:
        obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)
