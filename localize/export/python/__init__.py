"""Write the format ``py``: a localized model as Python source that imports torch alone.

May import what ``localize.export`` may import, but nothing of ``drawing``, ``page`` and ``programs``.
"""
