"""The format ``html``: one file that opens from disk, asks for nothing else, and shows a localized model.

Names come from users: they reach the page as JSON whose markup characters are escaped, and its scripts put them there
as text. What may run is listed by its hash, and nothing may be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

from localize.export.page.page_data import page_data
from localize.export.request import Request

SCRIPTS = ("words", "content", "layout", "draw", "viewport", "reach", "walk", "details", "about", "chart", "main")
"""In order; they share one scope."""
STYLES = ("theme", "page", "graph")

_ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def page(request: Request) -> bytes:
    """A localized model as a page."""
    library, program, styles = _library(), _program(), "".join(_asset(f"{name}.css") for name in STYLES)
    parts = {
        "policy": _policy((library, program), styles),
        "title": html.escape(_visible(f"{request.local.plan.model} by {request.local.plan.method}")),
        "styles": styles,
        "library": library,
        "data": embedded(page_data(request)),
        "program": program,
    }
    # In one pass: nothing that is filled in is looked at again.
    text = re.sub(r"<!--slot (\w+)-->", lambda match: parts[match[1]], _asset("page.html"))
    return text.encode("utf-8")


def embedded(data: Any) -> str:
    """JSON that may stand between script tags, whatever names are in it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return re.sub("[<>&\u2028\u2029]", lambda match: _ESCAPED[match[0]], text)


def _policy(scripts: Iterable[str], styles: str) -> str:
    allowed = " ".join(_digest(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_digest(styles)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    """As a content security policy names an inline script."""
    found = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{found}'"


@cache
def _library() -> str:
    """The layout library, with its licence; without the last line, which names a file that is not there."""
    licence = _asset("vendor/dagre.LICENSE").replace("*/", "* /")
    lines = _asset("vendor/dagre.min.js").splitlines()
    code = "\n".join(line for line in lines if not line.startswith("//# sourceMappingURL"))
    return f"/*! @dagrejs/dagre\n{licence}*/\n{code}\n"


@cache
def _program() -> str:
    body = "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    return f'"use strict";\n(() => {{\n{body}\n}})();\n'


@cache
def _asset(name: str) -> str:
    folder = resources.files("localize.export.page") / "assets"
    return folder.joinpath(*name.split("/")).read_text(encoding="utf-8")


def _visible(text: str) -> str:
    """Without characters that are none to look at."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
