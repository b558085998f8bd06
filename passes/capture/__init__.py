"""nn.Module -> Captured: traces a forward pass in train mode, and compares graph and model bit for bit.

May import ``passes.common``, ``passes.layers`` and what these may import.
"""
