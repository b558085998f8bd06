"""Compiler passes over torch.fx graphs: a value in, a new value out.

The package knows torch, torch.fx and networkx. It knows no learning rule, no data and no training, and it never
edits the user's model. Users import :mod:`localize`, which re-exports what they need.
"""

OWNER = "localize"
"""Says whose ``passes`` this is: the name is common, and :mod:`localize` checks it at import."""
