"""nn.Module -> Captured: traces a forward pass in train mode, and holds the graph against the model bit for bit.

May import ``passes.common``, ``passes.layers`` and what these may import.
"""
