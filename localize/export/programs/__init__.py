"""Write programs of ``torch.export`` and ONNX, in which each operation names its local module.

May import what ``localize.export`` may import, but nothing of ``drawing``, ``page`` and ``python``.
"""
