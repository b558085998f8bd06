"""Captured -> Shapes: infers shape, layout and cost of every node on fake tensors.

May import ``passes.common``, ``passes.layers`` and what these may import.
"""
