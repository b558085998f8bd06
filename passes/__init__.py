"""Compiler passes over torch.fx graphs: each takes a value and returns a new one, and none edits the user's model.

May import torch and networkx; nothing here knows a learning rule, data or training. Users import :mod:`localize`, which
re-exports what they need.
"""

OWNER = "localize"
"""The project that this package belongs to. Its name is a common one, so :mod:`localize` checks this at import."""
