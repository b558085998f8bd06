"""Extension of griffe for the documentation site: docstrings as Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`~?([^`]+)`")
EXAMPLE = re.compile(r"^( *)>>> .*(?:\n *\S.*)*", re.MULTILINE)
"""An example with its output, up to an empty line."""


class DocstringMarkdown(griffe.Extension):
    """Writes roles, such as ``:class:`Plan```, as code, and puts fences around examples."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        _rewrite(obj)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        _rewrite(pkg)


def _rewrite(obj: griffe.Object) -> None:
    if obj.docstring is not None:
        text = ROLE.sub(r"`\1`", obj.docstring.value)
        obj.docstring.value = EXAMPLE.sub(r"\1```pycon\n\g<0>\n\1```", text)
