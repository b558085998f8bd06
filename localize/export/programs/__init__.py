"""Programs of ``torch.export`` and ONNX, with the local module of every operation.

May import what ``localize.export`` may import.
"""
