"""Helpers that any pass may use, one for each task: running a graph, fake tensors, kinds of layers, fresh weights.

May import ``passes.errors``, ``passes.structure`` and ``passes.ir``.
"""
