"""The JSON Schema of a plan, derived from the dataclasses of a plan, so that it cannot differ from them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any

import torch

from localize.plan.plan import FORMAT, Plan

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN: Mapping[object, Mapping[str, object]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    torch.dtype: {"type": "string", "description": "A dtype of torch, such as float32."},
    type(None): {"type": "null"},
    Any: {},
}


def plan_schema() -> dict[str, object]:
    """Return the JSON Schema (draft 2020-12) of the text that :meth:`localize.Plan.to_json` writes."""
    definitions: dict[str, object] = {}
    plan = _record(Plan, definitions)
    properties, required = plan["properties"], plan["required"]
    assert isinstance(properties, dict)
    assert isinstance(required, list)
    version = {"const": FORMAT, "description": "Version of this form."}
    return {
        "$schema": DIALECT,
        "title": "Plan",
        **plan,
        "properties": {"format": version, **properties},
        "required": ["format", *required],
        "$defs": dict(sorted(definitions.items())),
    }


def _record(kind: type[object], definitions: dict[str, object]) -> dict[str, object]:
    """Return the schema of a dataclass: an object with all of its fields and no other."""
    assert dataclasses.is_dataclass(kind), f"{kind} has no fields"
    types_of, words = typing.get_type_hints(kind), meanings(kind)
    properties = {}
    for field in dataclasses.fields(kind):
        if not field.compare:  # these fields hold the model, and are not written
            continue
        meaning = {"description": words[field.name]} if field.name in words else {}
        properties[field.name] = {**_form(types_of[field.name], definitions), **meaning}
    return {
        "description": (kind.__doc__ or "").split("\n\n")[0].replace("\n", " "),
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _form(kind: object, definitions: dict[str, object]) -> dict[str, object]:
    """Return the schema of a type."""
    if kind in _PLAIN:
        return dict(_PLAIN[kind])
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}  # a record may hold others of its kind
            definitions[kind.__name__] = _record(kind, definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_form(argument, definitions) for argument in arguments]}
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": _form(arguments[0], definitions)}
    if origin is tuple:
        items = [_form(argument, definitions) for argument in arguments]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    assert origin is not None and issubclass(origin, Mapping), f"{kind} has no form in JSON"
    return {"type": "object", "additionalProperties": _form(arguments[1], definitions)}


def meanings(kind: type[object]) -> dict[str, str]:
    """Return the docstrings under a dataclass's fields by name, each in one line.

    Fields of base classes are included, and those of the dataclasses in ``kinds``, which some are joined from.
    """
    texts: dict[str, str] = {}
    for joined in getattr(kind, "kinds", ()):
        texts = meanings(joined) | texts
    for base in reversed(() if texts else kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (tree,) = ast.parse(inspect.cleandoc(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(meaning))):
                    texts[name] = " ".join(meaning.split())
    return texts
