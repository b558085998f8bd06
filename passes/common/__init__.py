"""What any pass may use: fake tensors, restoring a model, source lines, in-place operations, fresh weights.

May import ``passes.errors``, ``passes.structure`` and ``passes.ir``.
"""
