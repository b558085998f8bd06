"""Write the format ``html``: one file that opens from disk, loads nothing else, and shows a localized model.

Names come from users. They reach the page as JSON whose markup characters are escaped, and the scripts of the page only
insert them as text. A content security policy lists the allowed scripts by hash, and forbids to load anything.
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

from localize.export.page.page_data import page_data
from localize.export.request import Request

SCRIPTS = ("words", "content", "layout", "draw", "viewport", "reach", "walk", "details", "about", "chart", "main")
"""Scripts in the order in which they are joined; they share one scope (``assets/README.md``)."""
STYLES = ("theme", "page", "graph")

_ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def write_page(request: Request) -> bytes:
    """Write a localized model as a page."""
    library, program, styles = _library(), _program(), "".join(_asset(f"{name}.css") for name in STYLES)
    parts = {
        "policy": _policy((library, program), styles),
        "title": html.escape(_visible(f"{request.local.plan.model} by {request.local.plan.method}")),
        "styles": styles,
        "library": library,
        "data": embedded(page_data(request)),
        "program": program,
    }
    # One pass, so that text which was filled in is not searched for slots.
    text = re.sub(r"<!--slot (\w+)-->", lambda match: parts[match[1]], _asset("page.html"))
    return text.encode("utf-8")


def embedded(data: object) -> str:
    r"""Write JSON that is safe between script tags, whatever names it holds.

    >>> print(embedded({"name": "</script>"}))
    {"name":"\u003c/script\u003e"}
    """
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return re.sub("[<>&\u2028\u2029]", lambda match: _ESCAPED[match[0]], text)


def _policy(scripts: Iterable[str], styles: str) -> str:
    # `frame-ancestors` is left out: a policy in a `meta` element cannot have it, and browsers complain of it.
    allowed = " ".join(_digest(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_digest(styles)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    """Return the name of an inline script in a content security policy."""
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"


@cache
def _library() -> str:
    """Return the layout library with its licence, without the last line, which points to a file outside the page."""
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
    """Replace characters that cannot be printed."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
