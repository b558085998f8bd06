"""Exports: a localized model as pictures, a page, graphs, ONNX and Python. ``FORMATS`` lists them."""

from localize.export.formats import FORMATS, Format, add_graph, export, to_networkx
from localize.export.request import Request, View
from localize.plan.schema import plan_schema

__all__ = ["FORMATS", "Format", "Request", "View", "add_graph", "export", "plan_schema", "to_networkx"]
