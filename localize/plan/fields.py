"""What the fields of dataclasses mean: the docstrings under them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from typing import Any


def meanings(kind: type[Any]) -> dict[str, str]:
    """The docstrings of a dataclass's fields by name, each in one line; base classes' and joined ones' included."""
    found: dict[str, str] = {}
    for joined in getattr(kind, "kinds", ()):
        found = meanings(joined) | found
    for base in reversed(() if found else kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (tree,) = ast.parse(inspect.cleandoc(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(meaning))):
                    found[name] = " ".join(meaning.split())
    return found
