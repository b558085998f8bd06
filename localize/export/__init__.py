"""Exports: a localized model as pictures, a page, graphs, ONNX and Python. ``FORMATS`` lists them."""

from localize.export.formats import FORMATS, Format, Request, View, export

__all__ = ["FORMATS", "Format", "Request", "View", "export"]
