"""Format ``py``: a localized model as Python source that imports torch alone."""

from localize.export.python.source import python_source

__all__ = ["python_source"]
